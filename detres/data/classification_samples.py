"""Samples for classification: square crops of images with one class each, and batches of them.

He et al. 2015, §3.4. N images of a batch; s the crop's side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from detres.data import transforms
from detres.data.batching import Key
from detres.data.colors import ColorComponents, color_shift
from detres.data.config import CropConfig
from detres.data.decoding import read_image
from detres.data.preprocessing import to_tensor
from detres.data.records import ImageLabels
from detres.errors import DataError


@dataclass(frozen=True)
class ClassificationBatch:
    """Crops that go through a network together.

    Attributes:
        images: (N, 3, s, s) uint8 RGB.
        labels: (N,) int64.
        names: The images' paths.
        shifts: (N, 3) float32, levels of 255 to add to the red, green and blue of each crop; None for none.
        unreadable: A message for each image that was left out because it cannot be read.
    """

    images: Tensor
    labels: Tensor
    names: list[str]
    shifts: Tensor | None = None
    unreadable: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def pin_memory(self) -> ClassificationBatch:
        """The batch in page-locked memory (see `DetectionSample.pin_memory`)."""
        return replace(
            self,
            images=self.images.pin_memory(),
            labels=self.labels.pin_memory(),
            shifts=None if self.shifts is None else self.shifts.pin_memory(),
        )


@dataclass(frozen=True)
class ClassificationSample:
    """One crop of a batch (see `ClassificationBatch`). If the image cannot be read, `unreadable` says why."""

    image: Tensor
    label: int
    name: str
    shift: Tensor | None = None
    unreadable: str | None = None


class ClassificationDataset(Dataset[ClassificationSample]):
    """Square crops of images with one class each.

    Args:
        images: Paths and labels.
        crop: Sizes and flip.
        train: Random crops (§3.4); False gives the central one.
        seed: Of the random crops.
        colors: Principal components of the colors, for `crop.pca_color` in training; None: no shift.
        skip_unreadable: An image that cannot be read gives an empty sample instead of an error.
    """

    def __init__(
        self,
        images: ImageLabels,
        crop: CropConfig,
        *,
        train: bool,
        seed: int = 0,
        colors: ColorComponents | None = None,
        skip_unreadable: bool = False,
    ):
        self.images = images
        self.crop = crop
        self.train = train
        self.seed = seed
        self.colors = colors
        self.skip_unreadable = skip_unreadable

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int | Key) -> ClassificationSample:
        """The sample of an index (epoch 0), or of (epoch, index).

        Raises:
            DataError: The image cannot be read and `skip_unreadable` is false.
        """
        epoch, index = (0, key) if isinstance(key, int) else key
        path, label = self.images.paths[index], int(self.images.labels[index])
        try:
            image = read_image(path)
        except DataError as error:
            if not self.skip_unreadable:
                raise
            return ClassificationSample(torch.empty(0, dtype=torch.uint8), label, path, unreadable=str(error))
        if not self.train:
            return ClassificationSample(to_tensor(transforms.center_crop(image, self.crop)), label, path)
        generator = np.random.default_rng((self.seed, epoch, index))
        crop = to_tensor(transforms.train_crop(image, self.crop, generator))
        shift = None
        if self.crop.pca_color and self.colors is not None:
            shift = color_shift(self.colors, self.crop.pca_color, generator)
        return ClassificationSample(crop, label, path, shift)


def collate_classification(samples: list[ClassificationSample]) -> ClassificationBatch:
    """Stack crops of one size; images that could not be read are left out, and N may be 0."""
    crops = [sample for sample in samples if sample.unreadable is None]
    shifts = [sample.shift for sample in crops if sample.shift is not None]
    return ClassificationBatch(
        images=torch.stack([sample.image for sample in crops])
        if crops
        else torch.empty(0, 3, 1, 1, dtype=torch.uint8),
        labels=torch.tensor([sample.label for sample in crops], dtype=torch.int64),
        names=[sample.name for sample in crops],
        shifts=torch.stack(shifts) if shifts else None,
        unreadable=tuple(sample.unreadable for sample in samples if sample.unreadable is not None),
    )
