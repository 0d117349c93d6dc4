"""Reads the files of CIFAR-10, Python pickles or binary: the images and labels of one file.

Krizhevsky 2009; https://www.cs.toronto.edu/~kriz/cifar.html. An image is named by file and index, `data_batch_1!17`.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np

from detres.data.files import read_names
from detres.errors import DataError
from detres.unpickling import DAMAGE, ArrayUnpickler, RefusedGlobal

IMAGE_NAME = re.compile(r"(?P<file>(?:.*[/\\])?(?:data_batch_\d|test_batch)(?:\.bin)?)!(?P<index>\d+)")
SIDE = 32
PIXELS = 3 * SIDE * SIDE
RECORD = 1 + PIXELS  # bytes in a binary file: a label, then 1024 red, 1024 green, 1024 blue


def read_batch_image(path: str, index: int) -> np.ndarray:
    """(32, 32, 3) uint8 RGB.

    Raises:
        DataError: The file is missing or damaged, or has no such image.
    """
    pixels, _ = read_batch(path)
    if index >= len(pixels):
        raise DataError(f"picture {path}!{index}: the file holds {len(pixels)} pictures")
    return np.ascontiguousarray(pixels[index].reshape(3, SIDE, SIDE).transpose(1, 2, 0))


@functools.lru_cache(maxsize=6)
def read_batch(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 3072) uint8, planes of red, green and blue, and labels (N,) int64 of one file; six files are cached.

    Raises:
        DataError: Missing, truncated, or not a file of CIFAR-10.
    """
    try:
        return _read_binary(path) if path.endswith(".bin") else _read_pickled(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from error


def read_class_names(folder: Path) -> tuple[str, ...]:
    """The ten class names in `batches.meta` or `batches.meta.txt`.

    Raises:
        DataError: Neither exists, or it is damaged.
    """
    text, pickled = folder / "batches.meta.txt", folder / "batches.meta"
    if text.is_file():
        return tuple(read_names(text))
    if not pickled.is_file():
        raise DataError(
            f"{folder}: batches.meta is not there, which names the classes: unpack the archive again"
        )
    names = _unpickle(str(pickled)).get("label_names")
    if not isinstance(names, list) or not all(isinstance(name, (str, bytes)) for name in names):
        raise DataError(f"{pickled}: no list 'label_names' in it: unpack the archive again")
    return tuple(name.decode("latin1") if isinstance(name, bytes) else name for name in names)


def _read_binary(path: str) -> tuple[np.ndarray, np.ndarray]:
    content = np.fromfile(path, np.uint8)
    if not len(content) or len(content) % RECORD:
        raise DataError(
            f"{path} is truncated or not CIFAR-10's: {len(content)} bytes, not a number of records of {RECORD}"
        )
    records = content.reshape(-1, RECORD)
    return records[:, 1:], records[:, 0].astype(np.int64)


def _read_pickled(path: str) -> tuple[np.ndarray, np.ndarray]:
    content = _unpickle(path)
    pixels, labels = content.get("data"), content.get("labels")
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.ndim != 2
        or pixels.shape[1] != PIXELS
        or pixels.dtype != np.uint8
    ):
        raise DataError(f"{path}: not CIFAR-10's: 'data' is not (N, {PIXELS}) uint8")
    if (
        not isinstance(labels, list)
        or len(labels) != len(pixels)
        or not all(isinstance(label, int) and abs(label) < 2**31 for label in labels)
    ):
        raise DataError(f"{path}: not CIFAR-10's: 'labels' is not a list of {len(pixels)} integers")
    return pixels, np.array(labels, dtype=np.int64)


def _unpickle(path: str) -> dict[str, object]:
    """The dictionary in a pickle of Python 2 or 3, with keys as text."""
    try:
        with open(path, "rb") as file:
            content = ArrayUnpickler(file, encoding="latin1").load()
    except RefusedGlobal as error:
        raise DataError(
            f"{path}: the pickle names '{error.name}', which pictures do not need and which could run code; refused"
        ) from error
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        raise DataError(f"{path} is truncated or not a pickle ({error}): unpack the archive again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not CIFAR-10's: a pickled {type(content).__name__}, not a dictionary")
    return {
        key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in content.items()
    }
