"""Parses lists of images with the class of each, for splits without class folders (ImageNet's validation images).

A line has an image, then its class folder or the index of that among the sorted class folders (Caffe's `val.txt`); more
columns may follow (Tiny-ImageNet's `val_annotations.txt`, Kaggle's `LOC_val_solution.csv`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from detres.errors import DataError, nearest

HEADER = "ImageId"  # of Kaggle's file


def candidates(split: str) -> tuple[str, ...]:
    """Where the list of a split may lie, relative to the folder of the splits."""
    return (
        f"{split}.txt",
        f"{split}_labels.txt",
        f"{split}/{split}_annotations.txt",
        f"LOC_{split}_solution.csv",
    )


def parse_label_list(text: str, folders: Sequence[str], where: str) -> dict[str, int]:
    """Label by file name (without folders and suffix).

    Args:
        text: The list.
        folders: Sorted class folders; a label is an index into them.
        where: The list's path, for messages.

    Raises:
        DataError: A line has no class, an unknown one or a number out of range; or an image has two classes.
    """
    label_of = {folder: label for label, folder in enumerate(folders)}
    labels: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = re.split(r"[\s,]+", line.strip())
        if words == [""] or words[0] == HEADER:
            continue
        if len(words) < 2:
            raise DataError(f"{where}:{number}: a picture and its class are needed, not '{line.strip()}'")
        label = label_of.get(words[1])
        if label is None and re.fullmatch(r"-?\d+", words[1]):
            label = int(words[1])
            if not 0 <= label < len(folders):
                raise DataError(f"{where}:{number}: label {label} is out of range 0..{len(folders) - 1}")
        if label is None:
            raise DataError(f"{where}:{number}: no class folder '{words[1]}'{nearest(words[1], folders)}")
        stem = PurePosixPath(words[0]).stem
        if labels.setdefault(stem, label) != label:
            raise DataError(f"{where}:{number}: picture '{words[0]}' has two classes")
    return labels
