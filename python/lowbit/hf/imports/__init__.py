"""Checkpoints quantized by other tools, as float tensors."""
