"""Weights files: ours, and each foreign layout."""
