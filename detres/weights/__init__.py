"""Weights files: those of detres, and those of other programs."""
