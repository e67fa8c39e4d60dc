"""Networks, and what is read off them: layers, shapes, which layer feeds which."""
