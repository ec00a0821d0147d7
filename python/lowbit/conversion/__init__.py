"""Conversion of checkpoints and GGUF files: open, plan, encode, write and verify; and export to a checkpoint."""
