"""What one run is: its schema, how words become it, and the signature that names it."""
