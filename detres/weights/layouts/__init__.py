"""Weights of others, each layout in a file of its own: by its names alone it is known, and the recipe with it.

Every file has `fits(names)`, whether a file with these tensor names is of the layout, and `read`, which gives the
tensors under torchvision's names.
"""
