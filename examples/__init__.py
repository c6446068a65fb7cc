"""Examples on real models, each a command."""
