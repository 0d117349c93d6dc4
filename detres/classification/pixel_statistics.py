"""The mean of each pixel and the covariance of colors over the training images, and the preprocessing with that mean.

He et al. 2015, §3.4: "the per-pixel mean subtracted", and the color augmentation of Krizhevsky et al. 2012.

N images, s the crop's side. Pixels are those of central crops, RGB.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from detres.classification.data import LeftOut
from detres.console import progress
from detres.data.batching import make_loader
from detres.data.classification_samples import ClassificationDataset, collate_classification
from detres.data.colors import ColorComponents, principal_components
from detres.data.config import CropConfig
from detres.data.formats import resolve_directory
from detres.data.preprocessing import MeanImage, Preprocessing
from detres.data.records import ImageLabels
from detres.errors import DataError
from detres.files import atomic_path
from detres.training.feed import plain_errors
from detres.unpickling import DAMAGE

BATCH = 256


@dataclass(frozen=True)
class PixelStatistics:
    """Mean and color covariance of images.

    Attributes:
        mean: (3, s, s) float32, levels 0..255.
        covariance: (3, 3) float64, of the colors of all pixels, in 0..1.
    """

    mean: np.ndarray
    covariance: np.ndarray

    def components(self) -> ColorComponents:
        """Principal components of the colors."""
        return principal_components(self.covariance)

    def preprocessing(self) -> Preprocessing:
        """RGB in 0..255 minus the mean of each pixel, with a std of 1."""
        return _mean_subtracted(self.mean, "RGB")


def pixel_statistics(
    images: ImageLabels,
    crop: CropConfig,
    *,
    limit: int | None = None,
    workers: int = 0,
    skip_unreadable: bool = False,
    left_out: LeftOut | None = None,
    quiet: bool = False,
) -> PixelStatistics:
    """Mean and covariance over the central crops of images.

    Args:
        images: The training images.
        crop: Their crops' sizes.
        limit: Number of images, drawn at random (always the same ones); None: all.
        workers: Processes that decode.
        skip_unreadable: Leave out images that cannot be read.
        left_out: Gets those that were left out.
        quiet: No progress on standard error.

    Raises:
        DataError: An image cannot be read (or none can).
    """
    chosen = np.random.default_rng(0).permutation(len(images))[:limit].tolist()
    batches = [chosen[start : start + BATCH] for start in range(0, len(chosen), BATCH)]
    dataset = ClassificationDataset(images, crop, train=False, skip_unreadable=skip_unreadable)
    loader = make_loader(dataset, batches, collate_classification, workers=workers)
    count, total, products = 0, torch.zeros((), dtype=torch.int64), torch.zeros(3, 3, dtype=torch.float64)
    with plain_errors():
        for batch in progress(loader, "mean of the images", total=len(batches), quiet=quiet):
            if left_out is not None:
                left_out.add(batch.unreadable)
            if not len(batch):
                continue
            count += len(batch)
            total = total + batch.images.sum(dim=0, dtype=torch.int64)  # (3, s, s)
            colors = batch.images.transpose(0, 1).reshape(3, -1).double()  # (3, N s s)
            products += colors @ colors.T
    if not count:
        raise DataError(f"{images.source}: none of the images can be read")
    mean = total.double() / count
    center = mean.mean(dim=(1, 2))
    pixels = count * mean[0].numel()
    covariance = (products / pixels - torch.outer(center, center)) / 255.0**2
    return PixelStatistics(mean.float().numpy(), covariance.numpy())


def save_pixel_statistics(path: Path, statistics: PixelStatistics) -> None:
    """Write them as .npz, so that a resumed run can read them."""
    with atomic_path(path) as beside, open(beside, "wb") as file:
        np.savez(file, mean=statistics.mean, covariance=statistics.covariance)


def read_pixel_statistics(path: Path, side: int) -> PixelStatistics | None:
    """Read what `save_pixel_statistics` wrote; None if the file is missing, damaged, or of other crops."""
    try:
        with np.load(path, allow_pickle=False) as content:
            statistics = PixelStatistics(content["mean"], content["covariance"])
    except DAMAGE:
        return None
    return statistics if statistics.mean.shape == (3, side, side) else None


def read_mean_image(name: str, side: int) -> Preprocessing:
    """The preprocessing of a mean image in a .npy: (3, side, side), BGR, levels 0..255 (MSRA's form).

    Args:
        name: The file; a relative one is looked up as data are.
        side: Side of the crops.

    Raises:
        UserError: The file is missing or holds no such array.
    """
    path = resolve_directory(name)
    try:
        mean = np.load(path, allow_pickle=False)
    except DAMAGE as error:
        raise DataError(f"data.mean: {path} is not a .npy file ({error})") from error
    if not isinstance(mean, np.ndarray) or mean.shape != (3, side, side) or mean.dtype.kind not in "fiu":
        form = f"{mean.shape} {mean.dtype}" if isinstance(mean, np.ndarray) else "no array"
        raise DataError(
            f"data.mean: {path} holds {form}; (3, {side}, {side}) numbers, BGR in 0..255, are needed"
        )
    return _mean_subtracted(mean.astype(np.float32), "BGR")


def _mean_subtracted(mean: np.ndarray, order: str) -> Preprocessing:
    channels = tuple(float(value) for value in mean.mean(axis=(1, 2), dtype=np.float64))
    values = {"channel_order": order, "value_range": 255, "mean": channels, "std": (1.0, 1.0, 1.0)}
    return Preprocessing.model_validate({**values, "mean_image": MeanImage(torch.from_numpy(mean.copy()))})
