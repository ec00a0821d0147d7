"""lowbit: quantize Hugging Face checkpoints to GGUF, measure what was lost, run them on the CPU."""
