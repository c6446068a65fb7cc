"""Does the paper's claim hold on the small lineage? The experiment, its figures and its page."""
