"""Mixes that are used without being written: in transformers, in vLLM and in the terminal."""
