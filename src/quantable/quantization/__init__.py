"""How quantizers get into a network: the seam, their common part, gradients of rounding."""
