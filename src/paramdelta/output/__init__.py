"""A checkpoint that the ecosystem loads."""
