"""How Δs combine. One file for each scheme and each filter."""
