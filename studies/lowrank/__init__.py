"""How much of a Δ, and of what it can do, survives in a LoRA adapter; see docs/lora.md."""
