"""Pickles without their power to run code: arrays, ordered dictionaries and plain values come out of them.

For CIFAR-10's batches and for weights of other programs.
"""

from __future__ import annotations

import collections
import pickle
from typing import Any

import numpy as np


class RefusedGlobal(Exception):
    """A pickle names something that arrays and plain values do not need; nothing was imported or run.

    Attributes:
        name: What it names, `module.name`.
    """

    def __init__(self, name: str):
        super().__init__(name)
        self.name = name


class ArrayUnpickler(pickle.Unpickler):
    """Knows how to build arrays and ordered dictionaries, and nothing else.

    Raises:
        RefusedGlobal: For any other name, when loading.
    """

    def find_class(self, module: str, name: str) -> Any:
        known = _numpy_globals().get((module.replace("numpy._core", "numpy.core"), name))
        if known is None:
            raise RefusedGlobal(f"{module}.{name}")
        return known


def _numpy_globals() -> dict[tuple[str, str], Any]:
    # What an array's own __reduce__ names, whatever numpy's version calls its module.
    reconstruct = np.zeros(1).__reduce__()[0]
    scalar = np.float32(0).__reduce__()[0]
    from_buffer = np.zeros(1).__reduce_ex__(5)[0]
    return {
        ("numpy.core.multiarray", "_reconstruct"): reconstruct,
        ("numpy.core.multiarray", "scalar"): scalar,
        ("numpy.core.numeric", "_frombuffer"): from_buffer,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("_codecs", "encode"): _encode_latin1,
    }


def _encode_latin1(text: str, encoding: str = "latin1") -> bytes:
    """Python 2's byte strings inside a protocol-2 pickle."""
    return text.encode("latin1")
