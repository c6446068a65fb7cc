"""Where bytes are: one module for each kind of place."""
