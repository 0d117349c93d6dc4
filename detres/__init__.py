"""detres: deep residual networks for object detection, as in He et al. 2015.

The public names are imported on first use, so that `import detres` is quick and loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detres.api import Classifier, Detector, evaluate, load
    from detres.errors import UserError

__version__ = "0.1.0"
__all__ = ["Classifier", "Detector", "UserError", "__version__", "evaluate", "load"]

_HOMES = {
    "Classifier": "detres.api",
    "Detector": "detres.api",
    "UserError": "detres.errors",
    "evaluate": "detres.api",
    "load": "detres.api",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'detres' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
