"""Reproduction suite for mixed-precision quantization papers."""
