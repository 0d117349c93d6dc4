"""What a network looks at to classify a picture: the central crop, ten crops, or the whole picture at several sizes.

He et al. 2015, §3.4: 10-crop testing for comparisons; for the best results the fully convolutional form, its scores
averaged over shorter sides {224, 256, 384, 480, 640}. A score is the softmax's output; logits are averaged over
positions first, which the network's global average pooling does.

N pictures, V views in all, K classes; h and w a view's sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from detres.data.config import CropConfig
from detres.data.decoding import read_image
from detres.data.preprocessing import Preprocessing, normalize, to_tensor
from detres.data.records import ImageLabels
from detres.data.transforms import center_crop, resize_shorter, ten_crops
from detres.errors import DataError, UserError
from detres.networks.vgg import VGG

SMALLEST_DENSE_VGG = 224  # below, conv5_3's map is smaller than fc6


@dataclass(frozen=True)
class Views:
    """Which views of a picture are taken.

    Attributes:
        crops: 1, the central one, or 10.
        scales: Shorter sides of whole pictures, instead of crops.
        flip: Each view's mirror too.
    """

    crops: int = 1
    scales: tuple[int, ...] = ()
    flip: bool = False

    def of(self, image: np.ndarray, crop: CropConfig) -> list[np.ndarray]:
        """The views of a picture (H, W, 3) uint8: each (h, w, 3) uint8."""
        if self.scales:
            views = [resize_shorter(image, scale) for scale in self.scales]
        else:
            views = ten_crops(image, crop) if self.crops == 10 else [center_crop(image, crop)]
        if self.flip and self.crops == 1:  # ten crops have their mirrors already
            views += [view[:, ::-1] for view in views]
        return views

    def tensors(self, image: np.ndarray, crop: CropConfig) -> list[Tensor]:
        """The same, each (3, h, w) uint8."""
        return [to_tensor(view) for view in self.of(image, crop)]

    def __str__(self) -> str:
        if self.scales:
            name = f"fully convolutional, shorter sides {', '.join(map(str, self.scales))}"
        else:
            name = "ten crops" if self.crops == 10 else "central crop"
        return f"{name}, mirrored too" if self.flip and self.crops == 1 else name


@dataclass(frozen=True)
class ViewBatch:
    """Views of N pictures, those of one size stacked.

    Attributes:
        views: Each (V, 3, h, w) uint8 RGB.
        owners: For each of them (V,) int64, the picture that a view is of.
        labels: (N,) int64.
        unreadable: What is wrong with pictures that were left out.
    """

    views: tuple[Tensor, ...]
    owners: tuple[Tensor, ...]
    labels: Tensor
    unreadable: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def pin_memory(self) -> ViewBatch:
        """The views in page-locked memory (a DataLoader calls it)."""
        return replace(self, views=tuple(view.pin_memory() for view in self.views))


@dataclass(frozen=True)
class ViewSample:
    """All views of one picture, (3, h, w) uint8 each; none, and the reason, where it cannot be read."""

    views: list[Tensor]
    label: int
    unreadable: str | None = None


class ViewDataset(Dataset[ViewSample]):
    """Views of pictures with one class each, by index.

    Args:
        images: Paths and labels.
        crop: Sizes of crops.
        views: Which views.
        skip_unreadable: A picture that cannot be read is an empty sample and not an error.
    """

    def __init__(self, images: ImageLabels, crop: CropConfig, views: Views, *, skip_unreadable: bool = False):
        self.images, self.crop, self.views = images, crop, views
        self.skip_unreadable = skip_unreadable

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> ViewSample:
        """The views of a picture.

        Raises:
            DataError: It cannot be read, unless those are to be skipped.
        """
        label = int(self.images.labels[index])
        try:
            image = read_image(self.images.paths[index])
        except DataError as error:
            if not self.skip_unreadable:
                raise
            return ViewSample([], label, str(error))
        return ViewSample(self.views.tensors(image, self.crop), label)


def collate_views(samples: Sequence[ViewSample]) -> ViewBatch:
    """Views of one size stacked; pictures that could not be read are left out and named."""
    read = [sample for sample in samples if sample.unreadable is None]
    by_size: dict[tuple[int, ...], list[tuple[Tensor, int]]] = {}
    for owner, sample in enumerate(read):
        for view in sample.views:
            by_size.setdefault(tuple(view.shape), []).append((view, owner))
    return ViewBatch(
        views=tuple(torch.stack([view for view, _ in group]) for group in by_size.values()),
        owners=tuple(torch.tensor([owner for _, owner in group]) for group in by_size.values()),
        labels=torch.tensor([sample.label for sample in read], dtype=torch.int64),
        unreadable=tuple(sample.unreadable for sample in samples if sample.unreadable is not None),
    )


def view_scores(
    network: nn.Module,
    preprocessing: Preprocessing,
    batch: ViewBatch,
    device: torch.device,
    *,
    dense: bool = False,
    limit: int = 64,
) -> Tensor:
    """Scores of a batch's pictures: the mean over its views of the softmax.

    Args:
        network: In evaluation mode, on `device`; (V, 3, h, w) -> logits (V, K).
        preprocessing: What it expects.
        batch: At least one picture.
        device: Where to compute.
        dense: The views are whole pictures.
        limit: Views that go through at once.

    Returns:
        (N, K) float64 on the CPU.

    Raises:
        UserError: A view is too small for the network.
    """
    total: Tensor | None = None
    counts = torch.zeros(len(batch), 1, dtype=torch.float64)
    for views, owners in zip(batch.views, batch.owners, strict=True):
        for some, own in zip(views.split(limit), owners.split(limit), strict=True):
            inputs = normalize(some.to(device, non_blocking=True), preprocessing)
            logits = _dense_logits(network, inputs) if dense else network(inputs)
            scores = logits.double().softmax(dim=1).cpu()
            if total is None:
                total = torch.zeros(len(batch), scores.shape[1], dtype=torch.float64)
            total.index_add_(0, own, scores)
            counts.index_add_(0, own, torch.ones(len(own), 1, dtype=torch.float64))
    assert total is not None
    return total / counts


def _dense_logits(network: nn.Module, inputs: Tensor) -> Tensor:
    """A residual network pools whatever map it has; VGG's fully connected layers become convolutions."""
    if not isinstance(network, VGG):
        return network(inputs)
    if min(inputs.shape[2:]) < SMALLEST_DENSE_VGG:
        raise UserError(f"test.scales: VGG needs shorter sides of at least {SMALLEST_DENSE_VGG} pixels")
    return network.dense(inputs)
