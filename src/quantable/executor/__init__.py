"""Where cells run: here, side by side on this machine, or on a cluster."""
