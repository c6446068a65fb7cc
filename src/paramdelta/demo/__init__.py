"""The small shipped lineage and its tour."""
