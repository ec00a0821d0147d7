"""Running models: weights, sequences, text in and out."""
