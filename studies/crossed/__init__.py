"""Shift length × Δ length × skills in or out of pretraining, on fresh synthetic lineages.

    python -m studies.crossed

`preregistration.md` and `settings.json` were committed before the first run.
"""
