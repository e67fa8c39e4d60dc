"""How a network is trained, evaluated, kept and read back."""
