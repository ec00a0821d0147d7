"""Models that run."""
