"""Which tensor gets which format: mixes, overrides, importances."""
