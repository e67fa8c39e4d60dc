"""Searches for bit-widths: sensitivities of layers, allocators, and the files they end in."""
