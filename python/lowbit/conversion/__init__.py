"""Checkpoints and GGUF files to other files: open, plan, encode, write, verify; and back to a checkpoint."""
