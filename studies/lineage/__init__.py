"""A small real lineage that talks: the generated world, its text, its models and their scores."""
