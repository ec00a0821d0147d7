"""Choice of each tensor's format (mixes and overrides), and importance matrices."""
