"""Validation images that are held out of the training data where no validation data is named."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np

from detres.data.config import DataConfig
from detres.data.records import Annotations, ImageLabels
from detres.errors import DataError

Images = TypeVar("Images", Annotations, ImageLabels)


def hold_out_count(config: DataConfig, total: int) -> int:
    """How many of `total` training images are held out; 0: none.

    Args:
        config: `val_count` is the number, whatever `val` says. Without it, where `val` names nothing, `val_fraction` is
            the share; at least one image stays to train on.
        total: Number of training images.

    Raises:
        DataError: `val_count` leaves none to train on.
    """
    if config.val_count:
        if config.val_count >= total:
            raise DataError(f"data.val_count: {config.val_count} of {total} images leave none to train on")
        return config.val_count
    if config.val:
        return 0
    return max(0, min(round(total * config.val_fraction), total - 1))


def hold_out(images: Images, count: int, seed: int) -> tuple[Images, Images | None]:
    """Part images at random into training and validation images, each part in the order of the data.

    Args:
        images: All of them.
        count: Number of validation images; 0: none.
        seed: The same seed always draws the same images.
    """
    if count == 0:
        return images, None
    order = np.random.default_rng(seed).permutation(len(images))
    training, validation = (np.sort(part).tolist() for part in (order[count:], order[:count]))
    held_out = images.select(validation)
    return images.select(training), replace(held_out, source=f"{count} held out of {images.source}")
