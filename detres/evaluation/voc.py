"""Average precision as PASCAL VOC's development kit computes it: 11 points (2007) and area under the curve (2010 on).

The metric of Tables 7, 10 and 11 (He et al. 2015); Everingham et al., "The PASCAL VOC Challenge", IJCV 2010, §4.2.

D detections and G objects of one class. Boxes are xyxy with width = x2 - x1: VOC's inclusive box (a, b, c, d), whose
width the kit takes as c - a + 1, is (a - 1, b - 1, c, d) here, so that this module adds no 1 anywhere.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from detres.data.records import Annotations, DetectionTable
from detres.errors import UserError
from detres.evaluation.overlaps import check_detections, overlapping_pairs

# The kit's `0:0.1:1`, which MATLAB fills from both ends; its fourth value is 0.30000000000000004, not 0.3.
ELEVEN_POINTS = np.concatenate((np.arange(6) * 0.1, 1 - np.arange(4, -1, -1) * 0.1))


@dataclass(frozen=True)
class VocResult:
    """The figures of a split.

    Attributes:
        figures: `mAP` (= `mAP_area`), `mAP_11point`, `mAP_area` in 0..1: means over the classes with objects.
        classes: For each class `AP` (= `AP_area`), `AP_11point`, `AP_area`, `recall` (of all its detections),
            `objects` (without ignored ones), `difficult` (the ignored ones) and `detections`.
        images: Number of images.
        detections: Number of detections.
        iou: The IoU that a match needs.
        reasons: Why a figure is None or 0.0.
        class_reasons: Why a class has no figure, or 0.0.
    """

    figures: dict[str, float | None]
    classes: dict[str, dict[str, float | int | None]]
    images: int
    detections: int
    iou: float
    reasons: dict[str, str]
    class_reasons: dict[str, str]

    def to_json(self) -> dict[str, object]:
        """The result as `--json` has it."""
        return asdict(self)


def evaluate_voc(truth: Annotations, detections: DetectionTable, iou: float = 0.5) -> VocResult:
    """VOC's average precision of each class and its mean.

    A detection belongs only to the object of its class and image that it overlaps most (the first of equals). If a
    detection of higher score has matched that object already, it is false, however well it fits the next object. If the
    object is `difficult` or a crowd region, the detection is ignored. Equal scores keep their order. Classes without
    objects have no figure and are left out of the mean.

    Args:
        truth: Objects; `difficult` and `crowd` ones need not be detected.
        detections: Detections, in any order.
        iou: The smallest IoU of a match, in (0, 1].

    Raises:
        DataError: A score or box that is not finite, an image or label that `truth` does not have.
        UserError: `iou` out of range.
    """
    if not 0 < iou <= 1:
        raise UserError(f"iou: {iou} is out of range; a number above 0 and up to 1, VOC's is 0.5")
    check_detections(truth, detections)
    pairs = overlapping_pairs(truth, detections)
    best = pairs.where(detections.labels[pairs.detections] == truth.labels[pairs.objects]).best()
    overlap = np.zeros(len(detections))
    overlap[best.detections] = best.ious
    target = np.full(len(detections), -1)  # (D,) the object that each detection belongs to
    target[best.detections] = np.where(best.ious >= iou, best.objects, -1)
    classes: dict[str, dict[str, float | int | None]] = {}
    class_reasons: dict[str, str] = {}
    for label, name in enumerate(truth.class_names):
        classes[name], reason = _class_figures(truth, detections, target, overlap, label, iou)
        if reason:
            class_reasons[name] = reason
    eleven = _mean([figures["AP_11point"] for figures in classes.values()])
    area = _mean([figures["AP_area"] for figures in classes.values()])
    figures = {"mAP": area, "mAP_11point": eleven, "mAP_area": area}
    reason = _reason(area, detections, class_reasons)
    reasons = dict.fromkeys(figures, reason) if reason else {}
    return VocResult(figures, classes, len(truth), len(detections), iou, reasons, class_reasons)


def average_precision_11_points(recall: np.ndarray, precision: np.ndarray) -> float:
    """Mean over recalls 0, 0.1 .. 1 of the best precision at that recall or above, 0 if it is not reached.

    Args:
        recall: (D,) float64 after each detection in order of falling score.
        precision: (D,) float64 likewise.
    """
    return float(np.mean([precision[recall >= least].max(initial=0.0) for least in ELEVEN_POINTS]))


def average_precision_area(recall: np.ndarray, precision: np.ndarray) -> float:
    """Area under the monotone precision-recall curve: the sum of recall steps times best precision from there on.

    Args:
        recall: (D,) float64 after each detection in order of falling score.
        precision: (D,) float64 likewise.
    """
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def _class_figures(
    truth: Annotations,
    detections: DetectionTable,
    target: np.ndarray,
    overlap: np.ndarray,
    label: int,
    iou: float,
) -> tuple[dict[str, float | int | None], str | None]:
    """Figures of one class and, if they are None or 0, the reason."""
    in_class = truth.labels == label
    ignored = truth.difficult | truth.crowd
    objects = int((in_class & ~ignored).sum())
    rows = np.flatnonzero(detections.labels == label)
    rows = rows[np.argsort(-detections.scores[rows], kind="stable")]
    eleven = area = final_recall = None
    if objects:
        recall, precision = _curve(target[rows], ignored, objects)
        eleven = average_precision_11_points(recall, precision)
        area = average_precision_area(recall, precision)
        final_recall = float(recall[-1]) if len(recall) else 0.0
    figures: dict[str, float | int | None] = {
        "AP": area,
        "AP_11point": eleven,
        "AP_area": area,
        "recall": final_recall,
        "objects": objects,
        "difficult": int((in_class & ignored).sum()),
        "detections": len(rows),
    }
    if area is None:
        only = "only difficult objects" if in_class.any() else "no objects"
        return figures, f"{only} in the ground truth: left out of the mean"
    if area > 0:
        return figures, None
    if not len(rows):
        return figures, "no detections of this class"
    closest = overlap[rows].max()
    if closest < iou:
        return (
            figures,
            f"the best IoU of a detection with an object of this class is {closest:.2f}, below {iou:g}",
        )
    return figures, "its detections match only difficult objects"


def _curve(target: np.ndarray, ignored: np.ndarray, objects: int) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision after each detection of a class.

    Args:
        target: (D,) row of the object that each detection belongs to, -1 for none, in order of falling score.
        ignored: (M,) bool, objects that are ignored.
        objects: Number of the class's objects that are not ignored.
    """
    is_match = target >= 0
    is_ignored = is_match & ignored[target] if len(ignored) else is_match
    _, first = np.unique(target, return_index=True)  # the detection of highest score of each object
    is_first = np.zeros(len(target), bool)
    is_first[first] = True
    true = np.cumsum(is_match & is_first & ~is_ignored).astype(np.float64)
    count = np.cumsum(~is_ignored)
    return true / objects, true / np.maximum(count, 1)


def _mean(values: list[float | int | None]) -> float | None:
    existing = [value for value in values if value is not None]
    return float(np.mean(existing)) if existing else None


def _reason(mean: float | None, detections: DetectionTable, class_reasons: dict[str, str]) -> str | None:
    if mean is None:
        return "no class has objects that are not difficult in the ground truth"
    if mean > 0:
        return None
    if not len(detections):
        return "there are no detections"
    name, reason = next((name, reason) for name, reason in class_reasons.items() if "left out" not in reason)
    return f"no class has a true detection; {name}: {reason}"
