"""Chat templates: their sources and their rendering."""
