"""Hugging Face files: hub, config.json, safetensors, adapters, model cards."""
