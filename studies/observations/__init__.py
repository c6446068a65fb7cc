"""The paper's observations on weights, checked on the real lineages that are at hand."""
