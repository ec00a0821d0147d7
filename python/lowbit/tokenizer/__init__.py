"""Tokenizers: from and to GGUF metadata and Hugging Face files."""
