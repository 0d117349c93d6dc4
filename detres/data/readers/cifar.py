"""Reads CIFAR-10 as it is published: `cifar-10-batches-py` (pickles) or `cifar-10-batches-bin` (binary).

He et al. 2015, §4.2: 50,000 training images in five files, 10,000 test images in one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from detres.data.cifar_batches import read_batch, read_class_names
from detres.data.records import ImageLabels, Strings
from detres.errors import DataError, listed, nearest

FOLDER_NAMES = ("cifar-10-batches-py", "cifar-10-batches-bin")
BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}


def find_folder(path: Path) -> Path | None:
    """The folder of the files: `path` or one in it; None: there is none."""
    for folder in (path, *(path / name for name in FOLDER_NAMES)):
        if any(
            (folder / f"{name}{suffix}").is_file() for name in BATCHES["train"] for suffix in ("", ".bin")
        ):
            return folder
    return None


def splits() -> list[str]:
    """`train` and `test`."""
    return list(BATCHES)


def read(folder: Path, split: str | None) -> ImageLabels:
    """Read the images of one split.

    Args:
        folder: From `find_folder`.
        split: `train` or `test`.

    Raises:
        DataError: The split is unknown, a file is missing or damaged, or a label is out of range.
    """
    if split not in BATCHES:
        raise DataError(
            f"{folder}: "
            + (f"split '{split}' is not there{nearest(split, BATCHES)}" if split else "choose a split")
            + f"; CIFAR-10 has {listed(BATCHES)}"
        )
    suffix = ".bin" if (folder / f"{BATCHES['train'][0]}.bin").is_file() else ""
    names = read_class_names(folder)
    paths: list[str] = []
    labels = []
    for name in BATCHES[split]:
        file = folder / f"{name}{suffix}"
        if not file.is_file():
            raise DataError(
                f"{file} is not there: CIFAR-10's {split} has {listed(BATCHES[split])}; unpack it again"
            )
        batch_labels = read_batch(str(file))[1]
        wrong = np.flatnonzero((batch_labels < 0) | (batch_labels >= len(names)))
        if len(wrong):
            raise DataError(
                f"{file}: picture {wrong[0]} has label {batch_labels[wrong[0]]}, out of range 0..{len(names) - 1}"
            )
        paths += [f"{file}!{index}" for index in range(len(batch_labels))]
        labels.append(batch_labels)
    return ImageLabels(Strings(paths), np.concatenate(labels), names, f"{folder} ({split})")
