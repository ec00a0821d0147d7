"""The format of each tensor: mixes, overrides, importances."""
