"""Which detections meet which objects, and what no measure can be taken of.

Shared by the VOC measure, the sanity block and the reasons that go with a figure of 0.0.

D detections, M objects, P pairs of a detection and an object of the same picture that overlap. Boxes are xyxy
in continuous pixel coordinates; overlaps (IoU) are computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detres.data.records import Annotations, DetectionTable
from detres.errors import DataError


@dataclass(frozen=True)
class Pairs:
    """Pairs that overlap, in order of the detection and, within it, of the object.

    Attributes:
        detections: (P,) int64 rows of the table of detections.
        objects: (P,) int64 rows of the annotations.
        ious: (P,) float64, above 0.
    """

    detections: np.ndarray
    objects: np.ndarray
    ious: np.ndarray

    def __len__(self) -> int:
        return len(self.ious)

    def where(self, chosen: np.ndarray) -> Pairs:
        """The pairs where `chosen` (P,) is True."""
        return Pairs(self.detections[chosen], self.objects[chosen], self.ious[chosen])

    def best(self) -> Pairs:
        """For each detection that has a pair, the one of largest overlap; of equals, the first object."""
        if not len(self):
            return self
        order = np.lexsort(
            (-self.ious, self.detections)
        )  # stable: equal overlaps stay in order of the object
        rows = self.detections[order]
        return self.where(order[np.concatenate(([True], rows[1:] != rows[:-1]))])


def overlapping_pairs(
    truth: Annotations, detections: DetectionTable, boxes: np.ndarray | None = None
) -> Pairs:
    """All pairs of a detection and an object of the same picture, whatever their classes, with IoU above 0.

    Args:
        truth: M objects.
        detections: D detections.
        boxes: (D, 4) to take in place of the detections' own.
    """
    import torch

    from detres.boxes.geometry import box_iou

    found = torch.from_numpy((detections.boxes if boxes is None else boxes).astype(np.float64))
    objects = torch.from_numpy(truth.boxes.astype(np.float64))
    order = np.argsort(detections.images, kind="stable")
    ends = np.searchsorted(detections.images[order], np.arange(len(truth) + 1))
    parts = []
    for image in np.flatnonzero((np.diff(ends) > 0) & (np.diff(truth.offsets) > 0)).tolist():
        rows = order[ends[image] : ends[image + 1]]
        inside = truth.objects(image)
        ious = box_iou(found[rows], objects[inside]).numpy()
        first, second = np.nonzero(ious > 0)
        parts.append((rows[first], second + inside.start, ious[first, second]))
    if not parts:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    pairs = Pairs(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    return pairs.where(np.lexsort((pairs.objects, pairs.detections)))


def refuse_irregular(truth: Annotations, detections: DetectionTable) -> None:
    """Refuse detections of which no measure can be taken.

    Raises:
        DataError: A score or coordinate that is NaN or infinite, a picture or label that `truth` does not
            have; with the number of such detections and the first of them.
    """
    last_image, last_label = len(truth) - 1, len(truth.class_names) - 1
    checks = (
        ("a score that is not finite", detections.scores, ~np.isfinite(detections.scores)),
        ("a coordinate that is not finite", detections.boxes, ~np.isfinite(detections.boxes).all(axis=1)),
        (
            f"a picture index outside 0..{last_image}",
            detections.images,
            _outside(detections.images, last_image),
        ),
        (f"a label outside 0..{last_label}", detections.labels, _outside(detections.labels, last_label)),
    )
    for what, values, bad in checks:
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            image = int(detections.images[row])
            of_image = f" of picture {truth.image_ids[image]}" if 0 <= image < len(truth) else ""
            raise DataError(
                f"{int(bad.sum())} of {len(detections)} detections have {what}; "
                f"the first is detection {row}{of_image}: {values[row].tolist()}"
            )


def _outside(values: np.ndarray, largest: int) -> np.ndarray:
    return (values < 0) | (values > largest)
