"""Where runs can be watched beside the store."""
