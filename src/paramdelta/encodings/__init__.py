"""How an output tensor is stored. One file for each encoding."""
