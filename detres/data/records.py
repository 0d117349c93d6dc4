"""The content of a data set as flat arrays: annotations of a split, labels of images, detections.

Loader workers share flat arrays without copying them, which they would do with lists of objects.

N images, M objects, D detections, K classes. `boxes` are float32 xyxy in continuous pixel coordinates of the stored
(EXIF-upright) image, width = x2 - x1; `labels` are 0..K-1, indices into `class_names`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np


class Strings:
    """N strings in one byte buffer, without N Python objects.

    Args:
        texts: The strings.
    """

    def __init__(self, texts: Sequence[str]):
        encoded = [text.encode("utf-8") for text in texts]
        self._ends = np.cumsum([0, *(len(text) for text in encoded)], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(f"string {index} of {len(self)}")
        index %= len(self)
        return self._bytes[self._ends[index] : self._ends[index + 1]].tobytes().decode("utf-8")


@dataclass(frozen=True)
class Annotations:
    """The objects of one split (or a union of splits).

    Attributes:
        paths: N image paths (`archive.zip!member` and `shapes://...` are understood by `decoding.read_image`).
        image_ids: N ids as the data set has them (COCO's int ids as text, VOC's stems).
        sizes: (N, 2) int64, height and width of the upright image.
        upright: (N,) bool; False where the boxes were drawn on the image with its EXIF orientation ignored.
        offsets: (N + 1,) int64; the objects of image i are rows offsets[i]:offsets[i + 1].
        boxes: (M, 4) float32 xyxy.
        labels: (M,) int64 in 0..K-1.
        crowd: (M,) bool, COCO's `iscrowd`.
        difficult: (M,) bool, VOC's `difficult`.
        areas: (M,) float64, COCO's `area` (of the segment), else width times height.
        class_names: K names in the order of the data's own ids.
        category_ids: K ids as the data set has them, None where it has none.
        source: Where it was read, for messages.
        exhaustive: (N,) bool, False where objects may lack annotations (ImageNet DET's train); None: all True.
    """

    paths: Strings
    image_ids: Strings
    sizes: np.ndarray
    upright: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    areas: np.ndarray
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...] | None = None
    source: str = ""
    exhaustive: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def is_exhaustive(self, index: int) -> bool:
        """Whether every object of image `index` is annotated."""
        return self.exhaustive is None or bool(self.exhaustive[index])

    def objects(self, index: int) -> slice:
        """The rows of image `index` in the arrays of objects."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def objects_per_class(self) -> dict[str, int]:
        """Number of objects of each class, zero included."""
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        return dict(zip(self.class_names, counts.tolist(), strict=True))

    def select(self, indices: Sequence[int]) -> Annotations:
        """The images at `indices` (repetition allowed), in that order."""
        rows = [np.arange(self.offsets[i], self.offsets[i + 1]) for i in indices]
        keep = np.concatenate(rows).astype(np.int64) if rows else np.zeros(0, np.int64)
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            paths=Strings([self.paths[i] for i in indices]),
            image_ids=Strings([self.image_ids[i] for i in indices]),
            sizes=self.sizes[chosen],
            upright=self.upright[chosen],
            offsets=np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64),
            boxes=self.boxes[keep],
            labels=self.labels[keep],
            crowd=self.crowd[keep],
            difficult=self.difficult[keep],
            areas=self.areas[keep],
            exhaustive=None if self.exhaustive is None else self.exhaustive[chosen],
        )


@dataclass(frozen=True)
class ImageLabels:
    """Images with one class each (classification).

    Attributes:
        paths: N image paths.
        labels: (N,) int64 in 0..K-1.
        class_names: K names.
        source: Where it was read, for messages.
    """

    paths: Strings
    labels: np.ndarray
    class_names: tuple[str, ...]
    source: str = ""

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, indices: Sequence[int]) -> ImageLabels:
        """The images at `indices`, in that order."""
        paths = Strings([self.paths[index] for index in indices])
        return replace(self, paths=paths, labels=self.labels[np.asarray(indices, dtype=np.int64)])


@dataclass(frozen=True)
class DetectionTable:
    """Detections of a whole split.

    Attributes:
        images: (D,) int64, the image's index in the `Annotations` that the detections belong to.
        boxes: (D, 4) float32 xyxy in pixels of the upright image.
        scores: (D,) float64.
        labels: (D,) int64 in 0..K-1.
    """

    images: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    @staticmethod
    def concatenate(tables: Sequence[DetectionTable]) -> DetectionTable:
        """All rows of `tables`, in order; none give an empty table."""
        empty = DetectionTable(
            np.zeros(0, np.int64),
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.float64),
            np.zeros(0, np.int64),
        )
        parts = [empty, *tables]
        return DetectionTable(
            np.concatenate([part.images for part in parts]).astype(np.int64),
            np.concatenate([part.boxes for part in parts]).astype(np.float32),
            np.concatenate([part.scores for part in parts]).astype(np.float64),
            np.concatenate([part.labels for part in parts]).astype(np.int64),
        )


@dataclass(frozen=True)
class Defect:
    """One thing wrong with a data set.

    Attributes:
        kind: A short name, such as `zero-size box`.
        where: File and object, or image id.
        what: The details, with numbers.
    """

    kind: str
    where: str
    what: str


@dataclass
class ReadReport:
    """What a reader dropped or mended; nothing is dropped without an entry."""

    defects: list[Defect] = field(default_factory=list)

    def add(self, kind: str, where: str, what: str) -> None:
        self.defects.append(Defect(kind, where, what))

    def counts(self) -> dict[str, int]:
        """Number of defects of each kind."""
        return dict(Counter(defect.kind for defect in self.defects))
