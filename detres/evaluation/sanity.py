"""The sanity block, printed before the figures: whether the detections belong to the ground truth at all.

It answers "why is my AP 0": classes and images without a counterpart, boxes in another format, in other units or for
another image size, shifted labels. Nothing is repaired; each finding is reported with its numbers.

N images, M objects, D detections; boxes are xyxy in continuous pixel coordinates.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from detres.data.records import Annotations, DetectionTable
from detres.errors import listed
from detres.evaluation.overlaps import check_detections, overlapping_pairs

MATCH_IOU = 0.5  # from this IoU on a detection matches an object
MIN_SHARE = 0.5  # of detections that match an object; below it other box formats are tried
MIN_GAIN = 0.2  # what another format must add to that share to be reported
MAX_SAMPLE = 20_000  # detections that other formats are tried on
COCO_LIMIT = 100  # detections per class and image that COCO counts


@dataclass(frozen=True)
class SanityReport:
    """What a set of detections and the ground truth have in common.

    Attributes:
        images: Number of images: all, with objects, with detections, with objects but without detections.
        classes: Number of classes: all, with objects, with detections, with both.
        objects: Number of objects: all, `difficult`, crowd regions.
        detections: Number of detections: all, mean and largest number in an image.
        scores: Lowest, median and highest score, None without detections.
        overlap_any: Share of detections with an IoU of at least 0.5 with an object of any class; None without any.
        overlap_class: The same with an object of their own class.
        recall: Share of the objects (without difficult and crowd ones) that a detection of their class matches.
        findings: Problems, one sentence each, the likeliest cause of bad figures first.
    """

    images: dict[str, int]
    classes: dict[str, int]
    objects: dict[str, int]
    detections: dict[str, float]
    scores: tuple[float, float, float] | None
    overlap_any: float | None
    overlap_class: float | None
    recall: float | None
    findings: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """The report as `--json` has it."""
        return asdict(self)

    def text(self) -> str:
        """The block that the tools print before the figures."""
        images, classes, objects, counts = self.images, self.classes, self.objects, self.detections
        lines = [
            f"images      {images['all']}: {images['with_objects']} with objects, "
            f"{images['with_detections']} with detections, {images['missed']} with objects only",
            f"classes     {classes['all']}: {classes['with_objects']} with objects, "
            f"{classes['with_detections']} with detections, {classes['with_both']} with both",
            f"objects     {objects['all']}: {objects['difficult']} difficult, {objects['crowd']} crowd; "
            f"{_percent(self.recall)} of the others match a detection of their class at IoU {MATCH_IOU}",
            f"detections  {counts['all']:.0f}: {counts['mean']:.1f} per image, {counts['most']:.0f} at most",
        ]
        if self.scores is not None:
            low, middle, high = self.scores
            lines += [
                f"scores      {low:.3g} to {high:.3g}, median {middle:.3g}",
                f"overlap     {_percent(self.overlap_any)} of the detections match an object at IoU {MATCH_IOU}, "
                f"{_percent(self.overlap_class)} one of their own class",
            ]
        warnings = [f"! {finding}" for finding in self.findings]
        return "\n  ".join(["Sanity", *lines, *warnings])


def check_sanity(truth: Annotations, detections: DetectionTable) -> SanityReport:
    """Compare detections with the ground truth.

    Args:
        truth: The objects.
        detections: Detections, in any order.

    Raises:
        DataError: A score or box that is not finite, an image or label that `truth` does not have.
    """
    check_detections(truth, detections)
    with_objects = np.diff(truth.offsets) > 0  # (N,)
    per_image = np.bincount(detections.images, minlength=len(truth))
    class_objects = np.bincount(truth.labels, minlength=len(truth.class_names))
    class_detections = np.bincount(detections.labels, minlength=len(truth.class_names))
    matches_any, matches_class, recall = _match_shares(truth, detections)
    share_any = float(matches_any.mean()) if len(detections) else None
    share_class = float(matches_class.mean()) if len(detections) else None
    findings = [
        *_check_empty(truth, detections),
        *_check_boxes(truth, detections, share_any),
        *_check_labels(truth, detections, share_any, share_class),
        *_check_classes(truth, class_objects, class_detections),
        *_check_images(truth, with_objects & (per_image == 0), len(detections)),
        *_check_scores(detections),
        *_check_counts(detections),
    ]
    return SanityReport(
        images={
            "all": len(truth),
            "with_objects": int(with_objects.sum()),
            "with_detections": int((per_image > 0).sum()),
            "missed": int((with_objects & (per_image == 0)).sum()),
        },
        classes={
            "all": len(truth.class_names),
            "with_objects": int((class_objects > 0).sum()),
            "with_detections": int((class_detections > 0).sum()),
            "with_both": int(((class_objects > 0) & (class_detections > 0)).sum()),
        },
        objects={
            "all": len(truth.labels),
            "difficult": int(truth.difficult.sum()),
            "crowd": int(truth.crowd.sum()),
        },
        detections={
            "all": len(detections),
            "mean": len(detections) / len(truth) if len(truth) else 0.0,
            "most": int(per_image.max(initial=0)),
        },
        scores=_quantiles(detections.scores),
        overlap_any=share_any,
        overlap_class=share_class,
        recall=recall,
        findings=tuple(findings),
    )


def _match_shares(
    truth: Annotations, detections: DetectionTable
) -> tuple[np.ndarray, np.ndarray, float | None]:
    """(D,) matches an object of any class; (D,) of its own class; share of the objects matched by their class."""
    pairs = overlapping_pairs(truth, detections)
    pairs = pairs.where(pairs.ious >= MATCH_IOU)
    same = pairs.where(detections.labels[pairs.detections] == truth.labels[pairs.objects])
    matches_any, matches_class = np.zeros((2, len(detections)), bool)
    matches_any[pairs.detections] = True
    matches_class[same.detections] = True
    is_matched = np.zeros(len(truth.labels), bool)
    is_matched[same.objects] = True
    counts = ~(truth.difficult | truth.crowd)
    return matches_any, matches_class, float(is_matched[counts].mean()) if counts.any() else None


def _check_empty(truth: Annotations, detections: DetectionTable) -> list[str]:
    findings = []
    if not len(truth.labels):
        findings.append("the ground truth has no objects: every figure is n/a")
    if not len(detections):
        findings.append(
            "there are no detections: is the score threshold (test.score_thresh) above every score?"
        )
    return findings


def _check_boxes(truth: Annotations, detections: DetectionTable, share: float | None) -> list[str]:
    """Boxes without area, outside their image, in other units, or in another format."""
    boxes = detections.boxes
    if share is None:
        return []
    findings = []
    without_area = float(np.mean((boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])))
    if without_area:
        cause = ": xywh read as xyxy?" if without_area > 0.1 else ""
        findings.append(f"{_percent(without_area)} of the boxes have x2 <= x1 or y2 <= y1{cause}")
    sizes = truth.sizes[detections.images].astype(np.float32)  # (D, 2) height, width
    normalized = bool((np.abs(boxes) <= 2).all())
    if normalized:
        findings.append("all coordinates lie within 0..2: normalized to the image's size instead of pixels?")
    elif (sizes > 0).all():
        beyond = (boxes[:, 2] > sizes[:, 1] + 1) | (boxes[:, 3] > sizes[:, 0] + 1)
        outside = float(np.mean(beyond | (boxes[:, :2] < -1).any(axis=1)))
        if outside > 0.05:
            findings.append(
                f"{_percent(outside)} of the boxes extend beyond their image: pixels of a resized image?"
            )
    if share < MIN_SHARE and len(truth.labels):
        findings += _find_better_format(truth, detections, share, normalized)
    return findings


def _find_better_format(
    truth: Annotations, detections: DetectionTable, share: float, normalized: bool
) -> list[str]:
    """The format of the four numbers that fits the objects clearly better than xyxy, if any."""
    detections = _thin_out(detections)
    x1, y1, x2, y2 = (column[:, None] for column in detections.boxes.T)
    height, width = (column[:, None] for column in truth.sizes[detections.images].astype(np.float32).T)
    formats = {
        "the boxes look like xywh read as xyxy": (x1, y1, x1 + x2, y1 + y2),
        "the boxes look like xyxy read as xywh": (x1, y1, x2 - x1, y2 - y1),
        "the boxes look like center x, center y, w, h read as xyxy": (
            x1 - x2 / 2,
            y1 - y2 / 2,
            x1 + x2 / 2,
            y1 + y2 / 2,
        ),
        "x and y look exchanged": (y1, x1, y2, x2),
    }
    if normalized:
        formats["the boxes look normalized to 0..1"] = (x1 * width, y1 * height, x2 * width, y2 * height)
    shares = {}
    for name, columns in formats.items():
        best = overlapping_pairs(truth, detections, np.concatenate(columns, axis=1)).best()
        shares[name] = float((best.ious >= MATCH_IOU).sum()) / len(detections)
    name = max(shares, key=shares.__getitem__)
    if shares[name] < share + MIN_GAIN:
        return []
    return [f"{name}: in that format {_percent(shares[name])} would match an object, not {_percent(share)}"]


def _thin_out(detections: DetectionTable) -> DetectionTable:
    """At most `MAX_SAMPLE` detections, spread evenly."""
    stride = slice(None, None, -(-len(detections) // MAX_SAMPLE))
    columns = (detections.images, detections.boxes, detections.scores, detections.labels)
    return DetectionTable(*(column[stride] for column in columns))


def _check_labels(
    truth: Annotations, detections: DetectionTable, share_any: float | None, share_class: float | None
) -> list[str]:
    """Boxes that match objects of another class: a class list in another order, ids that start at another number."""
    if not share_any or share_class is None or share_class >= MIN_SHARE * share_any:
        return []
    best = overlapping_pairs(truth, detections).best()
    best = best.where(best.ious >= MATCH_IOU)
    predicted, true = detections.labels[best.detections], truth.labels[best.objects]
    message = (
        f"{_percent(share_any)} of the detections match an object but only {_percent(share_class)} one of "
        "their own class: is the list of classes the same, in the same order?"
    )
    shifts, counts = np.unique(true - predicted, return_counts=True)
    shift = int(shifts[counts.argmax()])
    if shift and counts.max() > MIN_SHARE * counts.sum() and len(truth.class_names) > 2:
        message += f" Labels look shifted by {shift:+d} (category ids that start at another number?)"
    return [message]


def _check_classes(truth: Annotations, objects: np.ndarray, detections: np.ndarray) -> list[str]:
    if not objects.any() or not detections.any():
        return []
    findings = []
    missed = [truth.class_names[k] for k in np.flatnonzero((objects > 0) & (detections == 0))]
    extra = [truth.class_names[k] for k in np.flatnonzero((objects == 0) & (detections > 0))]
    if missed:
        findings.append(f"{len(missed)} classes with objects have no detections: {listed(missed)}")
    if extra:
        findings.append(f"{len(extra)} classes with detections have no objects: {listed(extra)}")
    return findings


def _check_images(truth: Annotations, missed: np.ndarray, detections: int) -> list[str]:
    """Images with objects but without detections, if they are many."""
    total = int((np.diff(truth.offsets) > 0).sum())
    if not detections or missed.sum() <= 0.1 * total:
        return []
    names = [truth.image_ids[i] for i in np.flatnonzero(missed)[:5].tolist()]
    more = ", ..." if missed.sum() > len(names) else ""
    return [
        f"{int(missed.sum())} of {total} images with objects have no detections "
        f"({', '.join(names)}{more}): detections of another split, or of a part of it?"
    ]


def _check_scores(detections: DetectionTable) -> list[str]:
    scores = detections.scores
    if len(scores) < 2:
        return []
    findings = []
    if scores.min() < 0 or scores.max() > 1:
        findings.append("scores lie outside 0..1: logits, or per cent? (only their order counts)")
    if scores.min() == scores.max():
        findings.append(f"all scores are {scores[0]:g}: AP depends on the order of equal scores")
    return findings


def _check_counts(detections: DetectionTable) -> list[str]:
    groups = np.stack((detections.images, detections.labels), axis=1)
    counts = np.unique(groups, axis=0, return_counts=True)[1] if len(groups) else np.zeros(0, int)
    exceeded = int((counts > COCO_LIMIT).sum())
    if not exceeded:
        return []
    return [
        f"COCO counts the {COCO_LIMIT} best detections per class and image; {exceeded} times there are more"
    ]


def _quantiles(scores: np.ndarray) -> tuple[float, float, float] | None:
    if not len(scores):
        return None
    return float(scores.min()), float(np.median(scores)), float(scores.max())


def _percent(share: float | None) -> str:
    return "n/a" if share is None else f"{100 * share:.1f} %"
