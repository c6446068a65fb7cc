"""ParamΔ on a real sentence encoder: all-MiniLM-L6-v2, code search and medical questions.

    python -m studies.encoders --data ../shared/data

`preregistration.md` and `settings.json` were committed before the first run. The result of each
seed and model is one JSON file in docs/study-encoders; a second run trains only what is missing.
"""
