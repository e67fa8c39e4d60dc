"""Quantization methods: one file is one paper's method."""
