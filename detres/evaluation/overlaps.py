"""Overlaps of detections and objects, and the check of detections before any metric.

Shared by the VOC metric, the sanity block and the reasons that go with a figure of 0.0.

D detections, M objects, P overlapping pairs of a detection and an object of the same image. Boxes are xyxy in
continuous pixel coordinates; overlaps (IoU) are computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detres.data.records import Annotations, DetectionTable
from detres.errors import DataError


@dataclass(frozen=True)
class Pairs:
    """Overlapping pairs, sorted by detection and then by object.

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

    def where(self, mask: np.ndarray) -> Pairs:
        """The pairs selected by a mask (P,) or by indices."""
        return Pairs(self.detections[mask], self.objects[mask], self.ious[mask])

    def best(self) -> Pairs:
        """The pair of largest overlap of each detection that has one; the first object of equals."""
        if not len(self):
            return self
        order = np.lexsort((-self.ious, self.detections))  # stable: equal overlaps stay sorted by object
        rows = self.detections[order]
        return self.where(order[np.concatenate(([True], rows[1:] != rows[:-1]))])


def overlapping_pairs(
    truth: Annotations, detections: DetectionTable, boxes: np.ndarray | None = None
) -> Pairs:
    """All pairs of a detection and an object of the same image with IoU above 0, whatever their classes.

    Args:
        truth: M objects.
        detections: D detections.
        boxes: (D, 4), used instead of the detections' own.
    """
    import torch

    from detres.boxes.geometry import box_iou

    detection_boxes = torch.from_numpy((detections.boxes if boxes is None else boxes).astype(np.float64))
    objects = torch.from_numpy(truth.boxes.astype(np.float64))
    order = np.argsort(detections.images, kind="stable")
    ends = np.searchsorted(detections.images[order], np.arange(len(truth) + 1))
    parts = []
    for image in np.flatnonzero((np.diff(ends) > 0) & (np.diff(truth.offsets) > 0)).tolist():
        rows = order[ends[image] : ends[image + 1]]
        inside = truth.objects(image)
        ious = box_iou(detection_boxes[rows], objects[inside]).numpy()
        first, second = np.nonzero(ious > 0)
        parts.append((rows[first], second + inside.start, ious[first, second]))
    if not parts:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    pairs = Pairs(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    return pairs.where(np.lexsort((pairs.objects, pairs.detections)))


def check_detections(truth: Annotations, detections: DetectionTable) -> None:
    """Refuse detections that cannot be evaluated.

    Raises:
        DataError: A score or coordinate that is NaN or infinite, or an image or label that `truth` does not have. The
            message has the number of such detections and the first of them.
    """
    last_image, last_label = len(truth) - 1, len(truth.class_names) - 1
    checks = (
        ("a score that is not finite", detections.scores, ~np.isfinite(detections.scores)),
        ("a coordinate that is not finite", detections.boxes, ~np.isfinite(detections.boxes).all(axis=1)),
        (
            f"an image index outside 0..{last_image}",
            detections.images,
            _outside(detections.images, last_image),
        ),
        (f"a label outside 0..{last_label}", detections.labels, _outside(detections.labels, last_label)),
    )
    for what, values, bad in checks:
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            image = int(detections.images[row])
            of_image = f" of image {truth.image_ids[image]}" if 0 <= image < len(truth) else ""
            raise DataError(
                f"{int(bad.sum())} of {len(detections)} detections have {what}; "
                f"the first is detection {row}{of_image}: {values[row].tolist()}"
            )


def _outside(values: np.ndarray, largest: int) -> np.ndarray:
    return (values < 0) | (values > largest)
