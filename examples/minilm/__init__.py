"""ParamΔ on a real model and its real fine-tune: all-MiniLM-L6-v2 and sre-embedding-model."""
