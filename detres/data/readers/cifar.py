"""Reads CIFAR-10 as it is published: `cifar-10-batches-py` (pickles) or `cifar-10-batches-bin` (binary).

He et al. 2015, §4.2: 50,000 training pictures in five files, 10,000 test pictures in one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from detres.data.cifar_batches import read_batch, read_class_names
from detres.data.records import ImageLabels, Strings
from detres.errors import DataError, listed, nearest

FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin")
FILES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}


def find(path: Path) -> Path | None:
    """The folder of the files, `path` itself or inside it; None where there is none."""
    for folder in (path, *(path / name for name in FOLDERS)):
        if any((folder / f"{name}{suffix}").is_file() for name in FILES["train"] for suffix in ("", ".bin")):
            return folder
    return None


def splits() -> list[str]:
    """`train` and `test`."""
    return list(FILES)


def read(folder: Path, split: str | None) -> ImageLabels:
    """The pictures of one split.

    Args:
        folder: As `find` gives it.
        split: `train` or `test`.

    Raises:
        DataError: An unknown split, a file that is missing or damaged, a label out of range.
    """
    if split not in FILES:
        raise DataError(
            f"{folder}: "
            + (f"split '{split}' is not there{nearest(split, FILES)}" if split else "choose a split")
            + f"; CIFAR-10 has {listed(FILES)}"
        )
    suffix = ".bin" if (folder / f"{FILES['train'][0]}.bin").is_file() else ""
    names = read_class_names(folder)
    paths: list[str] = []
    labels = []
    for name in FILES[split]:
        file = folder / f"{name}{suffix}"
        if not file.is_file():
            raise DataError(
                f"{file} is not there: CIFAR-10's {split} has {listed(FILES[split])}; unpack it again"
            )
        own = read_batch(str(file))[1]
        wrong = np.flatnonzero((own < 0) | (own >= len(names)))
        if len(wrong):
            raise DataError(
                f"{file}: picture {wrong[0]} has label {own[wrong[0]]}, out of range 0..{len(names) - 1}"
            )
        paths += [f"{file}!{index}" for index in range(len(own))]
        labels.append(own)
    return ImageLabels(Strings(paths), np.concatenate(labels), names, f"{folder} ({split})")
