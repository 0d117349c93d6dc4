"""Restricted unpickling, which runs no code: arrays, ordered dictionaries and plain values.

For CIFAR-10's batches and for weights of other programs. A pickle reaches none of numpy's own classes, because a
`dtype` takes flags from the pickle that make it read foreign memory. Stand-ins record the content of the pickle, and
arrays of numbers and text are built from them afterwards.
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

KINDS = re.compile(r"[<>|=]?([biufSU]\d+)")  # booleans, integers, floats, bytes, text

# What a damaged pickle or archive of arrays raises (NotImplementedError and RecursionError are RuntimeErrors).
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
    """A pickle names something other than arrays and plain values; nothing was imported or run.

    Attributes:
        name: The name, `module.name`.
    """

    def __init__(self, name: str):
        super().__init__(name)
        self.name = name


class ArrayUnpickler(pickle.Unpickler):
    """Builds arrays (which may be read-only) and ordered dictionaries, and nothing else.

    Raises:
        RefusedGlobal: While loading, for any other name and for arrays of anything but numbers and text.
    """

    def find_class(self, module: str, name: str) -> Any:
        stand_in = STAND_INS.get((module.replace("numpy._core", "numpy.core"), name))
        if stand_in is None:
            raise RefusedGlobal(f"{module}.{name}")
        return stand_in

    def load(self) -> Any:
        """The pickle's content; dictionaries of any kind come out as plain ones."""
        return _build(super().load(), {})


class _Kind:
    """The type of a `dtype` in a pickle; its flags and sizes are ignored."""

    __slots__ = ("text",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, text: object):
        code = text.decode("latin1") if isinstance(text, bytes) else text
        if not isinstance(code, str) or not KINDS.fullmatch(code):
            raise RefusedGlobal(f"numpy.dtype({str(code)[:40]})")
        self.text = code

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 8 or state[2:5] != (None, None, None):
            raise RefusedGlobal("numpy.dtype with fields")
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        match = KINDS.fullmatch(self.text)
        if order not in ("<", ">", "|", "=") or match is None:
            raise ValueError(f"byte order {order!r}")
        self.text = f"{order}{match[1]}"


class _Array:
    """The content of an array in a pickle."""

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


# The stand-ins are instances without a dictionary, because a pickle could set attributes of functions and classes.
class _Named:
    """A name that is only passed on, such as numpy's `ndarray`."""

    __slots__ = ()


class _MakeKind(_Named):
    def __call__(self, text: object, align: object = False, copy: object = True) -> _Kind:
        return _Kind(text)


class _Reconstruct(_Named):
    def __call__(self, kind_of_array: object, shape: object, code: object) -> _Array:
        return _Array(None, None, None, None)  # the content comes with the state


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


# The names in an array's __reduce__, in any version of numpy.
STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct(),
    ("numpy.core.multiarray", "scalar"): _Scalar(),
    ("numpy.core.numeric", "_frombuffer"): _FromBuffer(),
    ("numpy", "ndarray"): _Named(),
    ("numpy", "dtype"): _MakeKind(),
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _EncodeLatin1(),
}


def _build(value: Any, results: dict[int, Any]) -> Any:
    """Replace stand-ins by arrays; `results` has what is built already, by the identity of its source."""
    if id(value) in results:
        return results[id(value)]
    if isinstance(value, _Array):
        results[id(value)] = value.build()
    elif isinstance(value, dict):
        inside = results[id(value)] = {}
        inside.update((key, _build(inner, results)) for key, inner in dict.items(value))
    elif isinstance(value, list):
        inside = results[id(value)] = []
        inside.extend(_build(inner, results) for inner in value)
    elif isinstance(value, tuple):
        results[id(value)] = tuple(_build(inner, results) for inner in value)
    elif isinstance(value, (_Kind, _Named)):
        raise ValueError("a part of an array by itself")
    else:
        return value
    return results[id(value)]


def _bytes(data: object) -> bytes | bytearray:
    """The bytes of an array; Python 2's strings are decoded as latin-1."""
    if isinstance(data, str):
        return data.encode("latin1")
    if not isinstance(data, (bytes, bytearray)):
        raise ValueError(f"an array of a {type(data).__name__}")
    return data
