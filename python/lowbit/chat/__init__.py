"""Chat templates: rendering, and tools from Python functions."""
