"""Conversion of checkpoints and GGUF files (open, plan, encode, write, verify), and export to a checkpoint."""
