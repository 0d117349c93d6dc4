"""Samples for detection: images with boxes, decoded, resized, and in training augmented.

Ren et al. 2015, §3.3. G objects of an image; h, w its resized height and width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from detres.data import transforms
from detres.data.batching import Key
from detres.data.config import AugmentationConfig
from detres.data.decoding import read_image, read_reduced
from detres.data.preprocessing import to_tensor
from detres.data.proposals import Proposals
from detres.data.records import Annotations
from detres.errors import DataError


@dataclass(frozen=True)
class DetectionSample:
    """A resized image and its objects.

    Attributes:
        image: (3, h, w) uint8 RGB.
        boxes: (G, 4) float32 xyxy in pixels of the resized image; crowd and difficult objects are left out.
        labels: (G,) int64 in 0..K-1.
        scale: (h / H, w / W) of the stored image's H, W: divide y and x by them to go back.
        size: (H, W) of the stored image.
        image_id: The image's id in its data set.
        index: Its place in the annotations.
        name: Its path, for messages.
        proposals: (P, 4) float32 like `boxes`, where the data set has regions proposed beforehand.
        exhaustive: Whether every object of the classes is annotated.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    scale: tuple[float, float]
    size: tuple[int, int]
    image_id: str
    index: int
    name: str
    proposals: Tensor | None = None
    exhaustive: bool = True

    def to(self, device: torch.device) -> DetectionSample:
        """The sample on another device; from page-locked memory the copy does not wait."""
        return replace(
            self,
            image=self.image.to(device, non_blocking=True),
            boxes=self.boxes.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            proposals=None if self.proposals is None else self.proposals.to(device, non_blocking=True),
        )

    def pin_memory(self) -> DetectionSample:
        """The sample in page-locked memory, from where it reaches a GPU without waiting (a DataLoader calls it)."""
        return replace(
            self,
            image=self.image.pin_memory(),
            boxes=self.boxes.pin_memory(),
            labels=self.labels.pin_memory(),
            proposals=None if self.proposals is None else self.proposals.pin_memory(),
        )


class DetectionDataset(Dataset[DetectionSample]):
    """The images of a split, resized, and augmented if an augmentation is given.

    Args:
        annotations: The split.
        short_side: Shorter side of the resized image.
        long_side: Limit of its longer side.
        augmentation: Of training; None for evaluation.
        seed: Of the augmentation.
        reduced_decoding: Decode large JPEGs at a fraction of their size (see `decoding.read_reduced`).
        proposals: Proposals for every image, which are resized and flipped with it.
    """

    def __init__(
        self,
        annotations: Annotations,
        short_side: int,
        long_side: int,
        augmentation: AugmentationConfig | None = None,
        seed: int = 0,
        reduced_decoding: bool = False,
        proposals: Proposals | None = None,
    ):
        self.annotations = annotations
        self.short_side, self.long_side = short_side, long_side
        self.augmentation = augmentation
        self.seed = seed
        self.reduced_decoding = reduced_decoding
        self.proposals = proposals
        self._augment = transforms.DetectionAugmentation(augmentation) if augmentation else None

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, key: int | Key) -> DetectionSample:
        """The sample of an index (epoch 0), or of (epoch, index); the same key gives the same sample anywhere.

        Raises:
            DataError: The image cannot be read, or its size is not that of its annotation.
        """
        epoch, index = (0, key) if isinstance(key, int) else key
        rows = self._training_objects(index)
        generator = np.random.default_rng((self.seed, epoch, index))
        sides = self.short_side, self.long_side
        if self.augmentation:
            sides = transforms.jittered_sides(*sides, self.augmentation, generator)
        size = int(self.annotations.sizes[index, 0]), int(self.annotations.sizes[index, 1])
        height, width, _ = transforms.resized_size(*size, *sides)
        smallest = (height, width) if self.reduced_decoding else None
        image = load_image(self.annotations, index, smallest)
        scale = height / size[0], width / size[1]
        image = transforms.resize_image(image, height, width)
        boxes = transforms.resize_boxes(self.annotations.boxes[rows], scale)
        proposals = np.zeros((0, 4), np.float32)
        if self.proposals is not None:
            proposals = transforms.resize_boxes(self.proposals[index], scale)
        if self._augment:
            image, moved, kept = self._augment(image, np.concatenate((boxes, proposals)), generator)
            objects = kept < len(rows)
            boxes, proposals, kept = moved[objects], moved[~objects], kept[objects]
            if len(kept) != len(rows):
                lost = sorted(set(range(len(rows))) - set(kept.tolist()))
                raise DataError(
                    f"picture {self.annotations.paths[index]}: objects {lost} have no area inside it"
                )
            rows = rows[kept]
        return DetectionSample(
            image=to_tensor(image),
            boxes=torch.from_numpy(boxes),
            labels=torch.from_numpy(self.annotations.labels[rows]),
            scale=scale,
            size=size,
            image_id=self.annotations.image_ids[index],
            index=index,
            name=self.annotations.paths[index],
            proposals=None if self.proposals is None else torch.from_numpy(proposals),
            exhaustive=self.annotations.is_exhaustive(index),
        )

    def _training_objects(self, index: int) -> np.ndarray:
        """Rows of the image's objects that are neither crowds nor difficult."""
        objects = self.annotations.objects(index)
        ignored = self.annotations.crowd[objects] | self.annotations.difficult[objects]
        return np.arange(objects.start, objects.stop)[~ignored]


def collate_detection(samples: list[DetectionSample]) -> list[DetectionSample]:
    """The batch is the list itself, because images of different sizes are never padded."""
    return samples


def load_image(annotations: Annotations, index: int, smallest: tuple[int, int] | None = None) -> np.ndarray:
    """Read the image that the boxes of `annotations` belong to: (H, W, 3) uint8 RGB.

    It is upright, unless only the image as stored has the size of the annotation. An orientation that keeps the size,
    such as upside down, does not show in the size; the image is upright then.

    Args:
        annotations: The split.
        index: Index of the image in it.
        smallest: Height and width to which it will be shrunk. A JPEG may be decoded at a fraction of its size that is
            not smaller (see `decoding.read_reduced`). None: decode in full.

    Raises:
        DataError: Neither has that size; the message names the image and both sizes.
    """
    path, upright = annotations.paths[index], bool(annotations.upright[index])
    wanted = tuple(int(side) for side in annotations.sizes[index])
    image, size = _read_with_size(path, upright, smallest)
    if size == wanted:
        return image
    if upright and size == wanted[::-1]:
        stored, stored_size = _read_with_size(path, False, smallest)
        if stored_size == wanted:
            return stored
    raise DataError(
        f"picture {path} is {size[1]} x {size[0]} (width x height), its annotation says"
        f" {wanted[1]} x {wanted[0]}: the boxes belong to another version of the picture"
    )


def _read_with_size(
    path: str, upright: bool, smallest: tuple[int, int] | None
) -> tuple[np.ndarray, tuple[int, int]]:
    """The pixels, and the height and width of the whole image."""
    if smallest is not None:
        return read_reduced(path, smallest, upright=upright)
    image = read_image(path, upright=upright)
    return image, (image.shape[0], image.shape[1])
