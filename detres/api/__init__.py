"""Trained networks in Python: load a weights file, find objects in pictures, evaluate on a data set.

`detector = detres.load("model.safetensors"); detector("image.jpg").draw("out.jpg")`
"""

from __future__ import annotations

from detres.api.classifier import ClassificationResult, Classifier
from detres.api.detector import DetectionResult, Detector
from detres.api.images import ImageLike, as_image
from detres.api.loading import evaluate, load

__all__ = [
    "ClassificationResult",
    "Classifier",
    "DetectionResult",
    "Detector",
    "ImageLike",
    "as_image",
    "evaluate",
    "load",
]
