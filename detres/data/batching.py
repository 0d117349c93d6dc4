"""Samples by key, and the endless stream of keys that training cuts into batches.

He et al. 2015, §3.4 and Ren et al. 2015, §3.3. A sample is a function of (seed, epoch, index) and of nothing else, so
that any run can go on at the exact sample and workers do not matter.

G objects of a picture; h, w its resized height and width; N pictures of a batch.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from detres.data import transforms
from detres.data.colours import ColourComponents, colour_shift
from detres.data.config import AugmentationConfig, CropConfig
from detres.data.decoding import read_image, read_reduced
from detres.data.proposals import Proposals
from detres.data.records import Annotations, ImageLabels
from detres.errors import DataError

Key = tuple[int, int]


@dataclass(frozen=True)
class DetectionSample:
    """A resized picture and its objects.

    Attributes:
        image: (3, h, w) uint8 RGB.
        boxes: (G, 4) float32 xyxy in pixels of the resized picture; crowd and difficult objects are left out.
        labels: (G,) int64 in 0..K-1.
        scale: (h / H, w / W) of the stored picture's H, W: divide y and x by them to go back.
        size: (H, W) of the stored picture.
        image_id: The picture's id in its data set.
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
    """Pictures of a split, resized; changed at random where an augmentation is given.

    Args:
        annotations: The split.
        short_side: Shorter side of the resized picture.
        long_side: Limit of its longer side.
        augmentation: Training's changes; None for evaluation.
        seed: Of the changes.
        reduced_decoding: Decode large JPEGs at a part of their size (see `decoding.read_reduced`).
        proposals: Regions of every picture; they are resized and flipped with it.
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
            DataError: The picture cannot be read, or its size is not what its annotation says.
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
        image = load_picture(self.annotations, index, smallest)
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
        """Rows of the picture's objects that are neither crowds nor difficult."""
        objects = self.annotations.objects(index)
        left_out = self.annotations.crowd[objects] | self.annotations.difficult[objects]
        return np.arange(objects.start, objects.stop)[~left_out]


@dataclass(frozen=True)
class ClassificationBatch:
    """Crops that go through a network together.

    Attributes:
        images: (N, 3, s, s) uint8 RGB.
        labels: (N,) int64.
        names: The pictures' paths.
        shifts: (N, 3) float32, levels of 255 to add to the red, green and blue of each crop; None for none.
        unreadable: What is wrong with pictures that were left out.
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
    """One crop of a batch (see `ClassificationBatch`); `unreadable` says why there is none, then `image` is empty."""

    image: Tensor
    label: int
    name: str
    shift: Tensor | None = None
    unreadable: str | None = None


class ClassificationDataset(Dataset[ClassificationSample]):
    """Square crops of pictures with one class each.

    Args:
        pictures: Paths and labels.
        crop: Sizes and flip.
        train: Random crops (§3.4); False gives the central one.
        seed: Of the random crops.
        colours: Principal components of the colours, for `crop.pca_colour` in training; None: no shift.
        skip_unreadable: A picture that cannot be read is an empty sample and not an error.
    """

    def __init__(
        self,
        pictures: ImageLabels,
        crop: CropConfig,
        *,
        train: bool,
        seed: int = 0,
        colours: ColourComponents | None = None,
        skip_unreadable: bool = False,
    ):
        self.pictures = pictures
        self.crop = crop
        self.train = train
        self.seed = seed
        self.colours = colours
        self.skip_unreadable = skip_unreadable

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: int | Key) -> ClassificationSample:
        """The sample of an index (epoch 0), or of (epoch, index).

        Raises:
            DataError: The picture cannot be read, unless those are to be skipped.
        """
        epoch, index = (0, key) if isinstance(key, int) else key
        path, label = self.pictures.paths[index], int(self.pictures.labels[index])
        try:
            image = read_image(path)
        except DataError as error:
            if not self.skip_unreadable:
                raise
            return ClassificationSample(torch.empty(0, dtype=torch.uint8), label, path, unreadable=str(error))
        if not self.train:
            return ClassificationSample(to_tensor(transforms.centre_crop(image, self.crop)), label, path)
        generator = np.random.default_rng((self.seed, epoch, index))
        crop = to_tensor(transforms.train_crop(image, self.crop, generator))
        shift = None
        if self.crop.pca_colour and self.colours is not None:
            shift = colour_shift(self.colours, self.crop.pca_colour, generator)
        return ClassificationSample(crop, label, path, shift)


class KeyBatches(Sampler[list[Key]]):
    """Keys (epoch, index) of the batches of steps `start` to `stop`.

    The stream of keys is one permutation of all indices after another, each made from (seed, epoch); step s takes keys
    s * batch to (s + 1) * batch - 1, so that every batch is full and an epoch's remainder goes with the next epoch's
    first keys.

    Args:
        count: Number of samples in the data set.
        batch: Keys of a step.
        seed: Of the permutations.
        start: First step, e.g. the one at which a resumed run goes on.
        stop: Step before which to end.
    """

    def __init__(self, count: int, batch: int, *, seed: int, start: int = 0, stop: int):
        if count < 1:
            raise DataError("the training data holds no picture: choose another folder or split")
        self.count, self.batch, self.seed = count, batch, seed
        self.start, self.stop = start, stop

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, order = -1, np.zeros(0, np.int64)
        for step in range(self.start, self.stop):
            keys = []
            for place in range(step * self.batch, (step + 1) * self.batch):
                if place // self.count != epoch:
                    epoch = place // self.count
                    order = np.random.default_rng((self.seed, epoch)).permutation(self.count)
                keys.append((epoch, int(order[place % self.count])))
            yield keys


def make_loader(
    dataset: Dataset[Any],
    batches: Sampler[list[Key]] | Sequence[Sequence[int | Key]],
    collate: Callable[[list[Any]], Any],
    *,
    workers: int = 0,
    start_method: str | None = None,
) -> DataLoader[Any]:
    """A DataLoader over batches of keys; it draws nothing from global generators, in no process.

    Args:
        dataset: Samples by key.
        batches: The keys of each batch.
        collate: From a list of samples to a batch.
        workers: Processes that load; 0 loads in this one.
        start_method: `fork`, `spawn` or `forkserver`; None takes the platform's.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=start_worker,
        multiprocessing_context=start_method if workers else None,
        generator=torch.Generator().manual_seed(
            0
        ),  # else it would take its workers' seeds from the global one
    )


def collate_detection(samples: list[DetectionSample]) -> list[DetectionSample]:
    """The batch is the list: pictures of different sizes are never padded."""
    return samples


def collate_classification(samples: list[ClassificationSample]) -> ClassificationBatch:
    """Crops of one size, stacked; pictures that could not be read are left out and named (N may be 0)."""
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


def load_picture(annotations: Annotations, index: int, smallest: tuple[int, int] | None = None) -> np.ndarray:
    """The picture that the boxes of `annotations` were drawn on: (H, W, 3) uint8 RGB.

    Upright, unless only the picture as stored has the size that the annotation gives. (An orientation that keeps the
    size, such as upside down, cannot be told from the size and counts as upright.)

    Args:
        annotations: The split.
        index: The picture's place in it.
        smallest: Height and width to which it will be shrunk: lets a JPEG be decoded at a part of its size, not below
            this (see `decoding.read_reduced`); None decodes in full.

    Raises:
        DataError: Neither has that size; names the picture and both sizes.
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
    """The pixels, and height and width of the whole picture."""
    if smallest is not None:
        return read_reduced(path, smallest, upright=upright)
    image = read_image(path, upright=upright)
    return image, (image.shape[0], image.shape[1])


def to_tensor(image: np.ndarray) -> Tensor:
    """(h, w, 3) uint8 -> (3, h, w) uint8, contiguous."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def start_worker(worker: int) -> None:
    """Start a process that loads: one thread, and out of reach of what asks the whole run to stop.

    Workers share the machine's cores (OpenCV's own pool also hangs in forked processes). Ctrl-C and SIGTERM, sent to
    all processes of a run, are its main process's: it finishes the step, for which it needs the workers, and ends
    them. A second SIGTERM ends a worker, so that one that hangs can be ended; one whose parent is gone ends by itself
    (torch watches for it).
    """
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
    if hasattr(os, "setsid"):
        os.setsid()
    cv2.setNumThreads(0)
