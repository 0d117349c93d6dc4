"""Weights of other programs, a module for each layout; `detres.weights.foreign.LAYOUTS` is the table of them.

A module has `fits`, whether a file has this layout, and `read`, the file's tensors under torchvision's names with the
recipe.
"""
