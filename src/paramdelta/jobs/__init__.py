"""The jobs: what engines run. One file for each."""
