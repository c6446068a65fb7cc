"""Named tensors over storage: one module for each format."""
