"""What the integers of a quantized network answer."""
