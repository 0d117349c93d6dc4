"""Trained networks in Python: load a weights file, find objects in pictures, evaluate on a data set.

`detector = detres.load("model.safetensors"); detector("picture.jpg").draw("out.jpg")`
"""

from __future__ import annotations

from detres.api.classifier import Classified, Classifier
from detres.api.detector import Detector, Found, detect_split
from detres.api.loading import evaluate, load
from detres.api.pictures import Picture, as_image

__all__ = [
    "Classified",
    "Classifier",
    "Detector",
    "Found",
    "Picture",
    "as_image",
    "detect_split",
    "evaluate",
    "load",
]
