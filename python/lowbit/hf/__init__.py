"""Hugging Face's side: hub, config.json, safetensors, adapters, model cards."""
