"""What detres is measured against: the same detector composed of torchvision's classes, and its training."""
