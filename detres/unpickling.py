"""Pickles without their power to run code: arrays, ordered dictionaries and plain values come out of them.

For CIFAR-10's batches and for weights of other programs. Nothing of numpy's own is within a pickle's reach, for a
`dtype` takes flags from the pickle that make it read memory that is not its own: stand-ins keep what a pickle says,
and arrays of numbers and text are built from it once it is read.
"""

from __future__ import annotations

import collections
import math
import pickle
import re
import struct
import tokenize
import zipfile
import zlib
from typing import Any

import numpy as np

KINDS = re.compile(r"[<>|=]?([biufSU]\d+)")  # truth values, integers, floats, bytes, text

# What reading a damaged pickle or archive of arrays raises (NotImplementedError and RecursionError are RuntimeErrors).
DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    tokenize.TokenError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    MemoryError,
    OverflowError,
    SyntaxError,
)


class RefusedGlobal(Exception):
    """A pickle names something that arrays and plain values do not need; nothing was imported or run.

    Attributes:
        name: What it names, `module.name`.
    """

    def __init__(self, name: str):
        super().__init__(name)
        self.name = name


class ArrayUnpickler(pickle.Unpickler):
    """Knows how to build arrays (which may be read-only) and ordered dictionaries, and nothing else.

    Raises:
        RefusedGlobal: For any other name, and for arrays of anything but numbers and text, when loading.
    """

    def find_class(self, module: str, name: str) -> Any:
        known = STAND_INS.get((module.replace("numpy._core", "numpy.core"), name))
        if known is None:
            raise RefusedGlobal(f"{module}.{name}")
        return known

    def load(self) -> Any:
        """The pickle's content; dictionaries of any kind come out as plain ones."""
        return _built(super().load(), {})


class _Kind:
    """What a pickle says of a `dtype`; its flags and sizes are not looked at."""

    __slots__ = ("text",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, text: object):
        said = text.decode("latin1") if isinstance(text, bytes) else text
        if not isinstance(said, str) or not KINDS.fullmatch(said):
            raise RefusedGlobal(f"numpy.dtype({str(said)[:40]})")
        self.text = said

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 8 or state[2:5] != (None, None, None):
            raise RefusedGlobal("numpy.dtype with fields")
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        found = KINDS.fullmatch(self.text)
        if order not in ("<", ">", "|", "=") or found is None:
            raise ValueError(f"byte order {order!r}")
        self.text = f"{order}{found[1]}"


class _Array:
    """What a pickle says of an array."""

    __slots__ = ("data", "kind", "order", "shape")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, shape: object, kind: object, order: object, data: object):
        self.shape, self.kind, self.order, self.data = shape, kind, order, data

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("an array without shape, type and content")
        _, self.shape, self.kind, fortran, self.data = state
        self.order = "F" if fortran else "C"

    def build(self) -> np.ndarray:
        shape = self.shape
        if not isinstance(self.kind, _Kind):
            raise ValueError("an array without a type")
        if not isinstance(shape, tuple) or not all(isinstance(side, int) and side >= 0 for side in shape):
            raise ValueError(f"an array of shape {str(shape)[:40]}")
        if self.order not in ("C", "F"):
            raise ValueError(f"an array in order {str(self.order)[:40]}")
        kind, data = np.dtype(self.kind.text), _bytes(self.data)
        if len(data) != math.prod(shape) * kind.itemsize:
            raise ValueError(f"an array of shape {shape} with {len(data)} bytes")
        if not data:
            return np.zeros(shape, kind)
        return np.frombuffer(data, kind).reshape(shape, order=self.order)


# Instances without a dictionary, where functions and classes would take attributes from a pickle.
class _Named:
    """A name that is only passed on, numpy's `ndarray`."""

    __slots__ = ()


class _MakeKind(_Named):
    def __call__(self, text: object, align: object = False, copy: object = True) -> _Kind:
        return _Kind(text)


class _Reconstruct(_Named):
    def __call__(self, kind_of_array: object, shape: object, code: object) -> _Array:
        return _Array(None, None, None, None)  # all of it comes with the state


class _FromBuffer(_Named):
    def __call__(self, data: object, kind: object, shape: object, order: object) -> _Array:
        return _Array(shape, kind, order, data)


class _Scalar(_Named):
    def __call__(self, kind: object, data: object = b"") -> Any:
        return _Array((), kind, "C", data).build().item()


class _EncodeLatin1(_Named):
    """Python 2's byte strings inside a protocol-2 pickle."""

    def __call__(self, text: str, encoding: str = "latin1") -> bytes:
        return text.encode("latin1")


# What an array's own __reduce__ names, of any version of numpy.
STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct(),
    ("numpy.core.multiarray", "scalar"): _Scalar(),
    ("numpy.core.numeric", "_frombuffer"): _FromBuffer(),
    ("numpy", "ndarray"): _Named(),
    ("numpy", "dtype"): _MakeKind(),
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _EncodeLatin1(),
}


def _built(value: Any, known: dict[int, Any]) -> Any:
    """The value with arrays for their stand-ins; `known` has what was built, by the identity of what it was of."""
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, _Array):
        known[id(value)] = value.build()
    elif isinstance(value, dict):
        inside = known[id(value)] = {}
        inside.update((key, _built(inner, known)) for key, inner in dict.items(value))
    elif isinstance(value, list):
        inside = known[id(value)] = []
        inside.extend(_built(inner, known) for inner in value)
    elif isinstance(value, tuple):
        known[id(value)] = tuple(_built(inner, known) for inner in value)
    elif isinstance(value, (_Kind, _Named)):
        raise ValueError("a part of an array by itself")
    else:
        return value
    return known[id(value)]


def _bytes(data: object) -> bytes | bytearray:
    """Python 2's strings are read as latin-1."""
    if isinstance(data, str):
        return data.encode("latin1")
    if not isinstance(data, (bytes, bytearray)):
        raise ValueError(f"an array of a {type(data).__name__}")
    return data
