"""Checkpoints that other tools quantized, as tensors of floats."""
