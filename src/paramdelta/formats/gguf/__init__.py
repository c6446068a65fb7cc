"""GGUF, the file format of llama.cpp: weights, often quantized, with metadata in one file."""
