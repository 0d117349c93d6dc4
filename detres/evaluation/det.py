"""Average precision as ILSVRC's development kit computes it for ImageNet DET: the metric of Table 12.

Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015, §5.3; `eval_detection.m` of the kit.
It is VOC's area under the curve with two differences: small objects need less overlap, and a detection whose best
object is matched already may match its next best.

D detections and M objects. Boxes are xyxy with width = x2 - x1: the kit's inclusive box (a, b, c, d), whose width the
kit takes as c - a + 1, is (a, b, c + 1, d + 1) here, so that this module adds no 1 anywhere.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass

import numpy as np

from detres.data.records import Annotations, DetectionTable
from detres.evaluation.overlaps import check_detections, overlapping_pairs
from detres.evaluation.voc import average_precision_area

MAX_THRESHOLD = 0.5
TOLERANCE = 10.0  # pixels that a box may be off along an axis, both sides together


@dataclass(frozen=True)
class DetResult:
    """The figures of a split.

    Attributes:
        figures: `mAP` and `median_AP` in 0..1 over the classes that have objects.
        classes: For each class `AP`, `recall` (of all its detections), `objects`, `detections`.
        images: Number of images.
        detections: Number of detections.
        left_out: Number of blacklisted pairs of an image and a class, which are ignored.
        reasons: Why a figure is None or 0.0.
        class_reasons: Why a class has no figure, or 0.0.
    """

    figures: dict[str, float | None]
    classes: dict[str, dict[str, float | int | None]]
    images: int
    detections: int
    left_out: int
    reasons: dict[str, str]
    class_reasons: dict[str, str]

    def to_json(self) -> dict[str, object]:
        """The result as `--json` has it."""
        return asdict(self)


def evaluate_det(
    truth: Annotations, detections: DetectionTable, blacklist: Collection[tuple[int, int]] = ()
) -> DetResult:
    """ILSVRC's average precision of each class and its mean.

    Detections are processed in order of falling score (equal scores by image, then in their given order). A detection
    is true if it overlaps an object of its class and image by at least that object's threshold, and no earlier
    detection has matched that object. It matches the object that it overlaps most (the first of equals). `difficult`
    and crowd flags have no effect.

    Args:
        truth: Objects.
        detections: Detections, in any order.
        blacklist: (image, label) indices whose objects and detections are ignored.

    Raises:
        DataError: A score or box that is not finite, an image or label that `truth` does not have.
    """
    check_detections(truth, detections)
    ignored = set(blacklist)
    images = np.repeat(np.arange(len(truth)), np.diff(truth.offsets))
    counted_objects = _select_counted(images, truth.labels, ignored)
    counted = _select_counted(detections.images, detections.labels, ignored)
    order = np.argsort(detections.images, kind="stable")
    order = order[np.argsort(-detections.scores[order], kind="stable")]
    order = order[counted[order]]
    is_true = _match(truth, detections, order)
    classes: dict[str, dict[str, float | int | None]] = {}
    class_reasons: dict[str, str] = {}
    for label, name in enumerate(truth.class_names):
        objects = int((counted_objects & (truth.labels == label)).sum())
        rows = order[detections.labels[order] == label]
        true = np.cumsum(is_true[rows]).astype(np.float64)
        precision, recall = true / np.arange(1, len(rows) + 1), true / max(objects, 1)
        figure = average_precision_area(recall, precision) if objects else None
        classes[name] = {
            "AP": figure,
            "recall": (float(recall[-1]) if len(rows) else 0.0) if objects else None,
            "objects": objects,
            "detections": len(rows),
        }
        if not figure:
            why = (
                "no detection of this class has enough overlap"
                if len(rows)
                else "no detections of this class"
            )
            class_reasons[name] = why if objects else "no objects in the ground truth: left out of the mean"
    existing = [figures["AP"] for figures in classes.values() if figures["AP"] is not None]
    mean = float(np.mean(existing)) if existing else None
    figures = {"mAP": mean, "median_AP": float(np.median(existing)) if existing else None}
    reasons = {}
    if not mean:
        why = "no class has a true detection" if len(detections) else "there are no detections"
        reasons = dict.fromkeys(figures, why if existing else "no class has objects in the ground truth")
    return DetResult(figures, classes, len(truth), len(detections), len(ignored), reasons, class_reasons)


def overlap_thresholds(boxes: np.ndarray) -> np.ndarray:
    """The overlap that each object needs: min(0.5, w h / ((w + 10) (h + 10))).

    A box that is up to 5 px off on every side must match, so that objects below about 25 x 25 px need less than 0.5.

    Args:
        boxes: (M, 4).

    Returns:
        (M,) float64.
    """
    width, height = (boxes[:, 2:].astype(np.float64) - boxes[:, :2]).T
    return np.minimum(MAX_THRESHOLD, width * height / ((width + TOLERANCE) * (height + TOLERANCE)))


def _match(truth: Annotations, detections: DetectionTable, order: np.ndarray) -> np.ndarray:
    """(D,) bool: which detections are true, if they are matched in this order."""
    pairs = overlapping_pairs(truth, detections)
    same_class = detections.labels[pairs.detections] == truth.labels[pairs.objects]
    pairs = pairs.where(same_class & (pairs.ious >= overlap_thresholds(truth.boxes)[pairs.objects]))
    starts = np.searchsorted(pairs.detections, np.arange(len(detections) + 1))
    is_true, is_matched = np.zeros(len(detections), bool), np.zeros(len(truth.labels), bool)
    for row in order[np.diff(starts)[order] > 0].tolist():
        objects = pairs.objects[starts[row] : starts[row + 1]]
        free = ~is_matched[objects]
        if free.any():
            ious = np.where(free, pairs.ious[starts[row] : starts[row + 1]], -1.0)
            is_matched[objects[int(ious.argmax())]] = is_true[row] = True
    return is_true


def _select_counted(images: np.ndarray, labels: np.ndarray, blacklist: set[tuple[int, int]]) -> np.ndarray:
    """(rows,) bool: the pair of image and label is not blacklisted."""
    if not blacklist:
        return np.ones(len(images), bool)
    return np.array(
        [pair not in blacklist for pair in zip(images.tolist(), labels.tolist(), strict=True)], dtype=bool
    )
