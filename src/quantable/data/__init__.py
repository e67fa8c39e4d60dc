"""Image sets: layouts on disk (no torch), decoded arrays, and batches on the training device."""
