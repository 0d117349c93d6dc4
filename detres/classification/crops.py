"""The crops of an image that a classifier is tested on: the central one, ten, or the whole image at several sizes.

He et al. 2015, §3.4: 10-crop testing for comparisons; for the best results the fully convolutional form, with scores
averaged over shorter sides {224, 256, 384, 480, 640}. A score is the softmax's output. The network's global average
pooling averages over positions before the softmax.

N images, V crops in all, K classes; h and w are a crop's sides.
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
class EvalCrops:
    """Which crops of an image are scored. A whole image at one size counts as a crop.

    Attributes:
        crops: 1, the central one, or 10.
        scales: Shorter sides of whole images, in pixels, instead of square crops.
        flip: Each crop's mirror image too.
    """

    crops: int = 1
    scales: tuple[int, ...] = ()
    flip: bool = False

    def of(self, image: np.ndarray, crop: CropConfig) -> list[np.ndarray]:
        """The crops of an image (H, W, 3) uint8: each (h, w, 3) uint8."""
        if self.scales:
            crops = [resize_shorter(image, scale) for scale in self.scales]
        else:
            crops = ten_crops(image, crop) if self.crops == 10 else [center_crop(image, crop)]
        if self.flip and self.crops == 1:  # ten crops have their mirrors already
            crops += [each[:, ::-1] for each in crops]
        return crops

    def tensors(self, image: np.ndarray, crop: CropConfig) -> list[Tensor]:
        """The same, each (3, h, w) uint8."""
        return [to_tensor(each) for each in self.of(image, crop)]

    def __str__(self) -> str:
        if self.scales:
            name = f"fully convolutional, shorter sides {', '.join(map(str, self.scales))}"
        else:
            name = "ten crops" if self.crops == 10 else "central crop"
        return f"{name}, mirrored too" if self.flip and self.crops == 1 else name


@dataclass(frozen=True)
class EvalCropBatch:
    """Crops of N images, those of one size stacked.

    Attributes:
        crops: Each (V, 3, h, w) uint8 RGB.
        owners: For each of them (V,) int64, the image that a crop is of.
        labels: (N,) int64.
        unreadable: What is wrong with images that were left out.
    """

    crops: tuple[Tensor, ...]
    owners: tuple[Tensor, ...]
    labels: Tensor
    unreadable: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def pin_memory(self) -> EvalCropBatch:
        """The crops in page-locked memory (a DataLoader calls it)."""
        return replace(self, crops=tuple(each.pin_memory() for each in self.crops))


@dataclass(frozen=True)
class EvalCropSample:
    """All crops of one image, (3, h, w) uint8 each; without crops and with the reason where it cannot be read."""

    crops: list[Tensor]
    label: int
    unreadable: str | None = None


class EvalCropDataset(Dataset[EvalCropSample]):
    """Crops of images with one class each, by index.

    Args:
        images: Paths and labels.
        crop: Sizes of square crops.
        eval_crops: Which crops.
        skip_unreadable: An image that cannot be read gives an empty sample instead of an error.
    """

    def __init__(
        self, images: ImageLabels, crop: CropConfig, eval_crops: EvalCrops, *, skip_unreadable: bool = False
    ):
        self.images, self.crop, self.eval_crops = images, crop, eval_crops
        self.skip_unreadable = skip_unreadable

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> EvalCropSample:
        """The crops of an image.

        Raises:
            DataError: It cannot be read, or is too narrow to be resized whole, and such images are not skipped.
        """
        label = int(self.images.labels[index])
        path = self.images.paths[index]
        try:
            image = read_image(path)
            try:
                return EvalCropSample(self.eval_crops.tensors(image, self.crop), label)
            except DataError as error:
                raise DataError(f"image {path}: {error}") from error
        except DataError as error:
            if not self.skip_unreadable:
                raise
            return EvalCropSample([], label, str(error))


def collate_eval_crops(samples: Sequence[EvalCropSample]) -> EvalCropBatch:
    """Stack the crops of each size; images that could not be read are left out and named."""
    read = [sample for sample in samples if sample.unreadable is None]
    by_size: dict[tuple[int, ...], list[tuple[Tensor, int]]] = {}
    for owner, sample in enumerate(read):
        for crop in sample.crops:
            by_size.setdefault(tuple(crop.shape), []).append((crop, owner))
    return EvalCropBatch(
        crops=tuple(torch.stack([crop for crop, _ in group]) for group in by_size.values()),
        owners=tuple(torch.tensor([owner for _, owner in group]) for group in by_size.values()),
        labels=torch.tensor([sample.label for sample in read], dtype=torch.int64),
        unreadable=tuple(sample.unreadable for sample in samples if sample.unreadable is not None),
    )


def score_eval_crops(
    network: nn.Module,
    preprocessing: Preprocessing,
    batch: EvalCropBatch,
    device: torch.device,
    *,
    dense: bool = False,
    limit: int = 64,
) -> Tensor:
    """Scores of a batch's images: the mean of the softmax over an image's crops.

    Args:
        network: In evaluation mode, on `device`; (V, 3, h, w) -> logits (V, K).
        preprocessing: What it expects.
        batch: At least one image.
        device: Where to compute.
        dense: The crops are whole images.
        limit: Number of crops that go through at once.

    Returns:
        (N, K) float64 on the CPU.

    Raises:
        UserError: A crop is too small for the network.
    """
    return score_with_logs(network, preprocessing, batch, device, dense=dense, limit=limit)[0]


def score_with_logs(
    network: nn.Module,
    preprocessing: Preprocessing,
    batch: EvalCropBatch,
    device: torch.device,
    *,
    dense: bool = False,
    limit: int = 64,
) -> tuple[Tensor, Tensor]:
    """As `score_eval_crops`, with the logs (N, K), which are finite where a score is rounded to 0.

    That holds for images of one crop. The others have the log of one of theirs.
    """
    total: Tensor | None = None
    logs = torch.empty(0)
    counts = torch.zeros(len(batch), 1, dtype=torch.float64)
    for crops, owners in zip(batch.crops, batch.owners, strict=True):
        for some, own in zip(crops.split(limit), owners.split(limit), strict=True):
            inputs = normalize(some.to(device, non_blocking=True), preprocessing)
            logits = _dense_logits(network, inputs) if dense else network(inputs)
            scores = logits.double().softmax(dim=1).cpu()
            if total is None:
                total = torch.zeros(len(batch), scores.shape[1], dtype=torch.float64)
                logs = torch.zeros_like(total)
            total.index_add_(0, own, scores)
            logs.index_copy_(0, own, logits.double().log_softmax(dim=1).cpu())
            counts.index_add_(0, own, torch.ones(len(own), 1, dtype=torch.float64))
    assert total is not None
    return total / counts, logs


def _dense_logits(network: nn.Module, inputs: Tensor) -> Tensor:
    """A residual network pools whatever map it has; VGG's fully connected layers become convolutions."""
    if not isinstance(network, VGG):
        return network(inputs)
    if min(inputs.shape[2:]) < SMALLEST_DENSE_VGG:
        raise UserError(f"test.scales: VGG needs shorter sides of at least {SMALLEST_DENSE_VGG} pixels")
    return network.dense(inputs)
