"""ParamΔ on a real decoder: SmolLM2-135M-Instruct, school arithmetic and medical text.

    python -m studies.decoder --data ../shared/data

`preregistration.md` and `settings.json` were committed before the first run.
"""
