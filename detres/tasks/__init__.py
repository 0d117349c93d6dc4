"""What detection and classification share: held-out images, class names, starting weights, ensembles, drawings."""
