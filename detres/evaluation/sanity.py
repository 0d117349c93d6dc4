"""What to look at before the figures: does the set of detections belong to the ground truth at all.

Answers "why is my AP 0": classes and pictures that do not meet, boxes in another form, other units, another
picture size, shifted labels. Nothing is mended; what looks wrong is said, with the numbers.

N pictures, M objects, D detections; boxes are xyxy in continuous pixel coordinates.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from detres.data.records import Annotations, DetectionTable
from detres.errors import listed
from detres.evaluation.overlaps import overlapping_pairs, refuse_irregular

MATCH = 0.5  # IoU from which a detection meets an object
FEW = 0.5  # share of detections that meet an object below which other readings of the boxes are tried
GAIN = 0.2  # what another reading must add to that share to be named
SAMPLE = 20_000  # detections that are enough to try other readings on
COCO_LIMIT = 100  # detections of a class in a picture that COCO counts


@dataclass(frozen=True)
class SanityReport:
    """What a set of detections and the ground truth have in common.

    Attributes:
        images: Pictures; with objects; with detections; with objects but without detections.
        classes: Classes; with objects; with detections; with both.
        objects: Objects; of them `difficult`; of them crowd regions.
        detections: Detections; mean and largest number in a picture.
        scores: Lowest, median and highest score, None without detections.
        overlap_any: Share of detections with an IoU of at least 0.5 with an object of any class, None without
            any.
        overlap_class: Likewise with an object of their own class.
        found: Share of the objects (less difficult and crowd ones) that a detection of their class meets.
        findings: What looks wrong, a sentence each, the likeliest cause of bad figures first.
    """

    images: dict[str, int]
    classes: dict[str, int]
    objects: dict[str, int]
    detections: dict[str, float]
    scores: tuple[float, float, float] | None
    overlap_any: float | None
    overlap_class: float | None
    found: float | None
    findings: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """The report as `--json` has it."""
        return asdict(self)

    def text(self) -> str:
        """The block that the tools print before the figures."""
        images, classes, objects, found = self.images, self.classes, self.objects, self.detections
        lines = [
            f"pictures    {images['all']}: {images['with_objects']} with objects, "
            f"{images['with_detections']} with detections, {images['missed']} with objects only",
            f"classes     {classes['all']}: {classes['with_objects']} with objects, "
            f"{classes['with_detections']} with detections, {classes['with_both']} with both",
            f"objects     {objects['all']}: {objects['difficult']} difficult, {objects['crowd']} crowd; "
            f"{_percent(self.found)} of the others meet a detection of their class at IoU {MATCH}",
            f"detections  {found['all']:.0f}: {found['mean']:.1f} a picture, {found['most']:.0f} at most",
        ]
        if self.scores is not None:
            low, middle, high = self.scores
            lines += [
                f"scores      {low:.3g} to {high:.3g}, median {middle:.3g}",
                f"overlap     {_percent(self.overlap_any)} of the detections meet an object at IoU {MATCH}, "
                f"{_percent(self.overlap_class)} one of their own class",
            ]
        warnings = [f"! {finding}" for finding in self.findings]
        return "\n  ".join(["Sanity", *lines, *warnings])


def check_sanity(truth: Annotations, detections: DetectionTable) -> SanityReport:
    """Look at detections beside the ground truth.

    Args:
        truth: The objects.
        detections: Detections, in any order.

    Raises:
        DataError: A score or box that is not finite, a picture or label that `truth` does not have.
    """
    refuse_irregular(truth, detections)
    with_objects = np.diff(truth.offsets) > 0  # (N,)
    per_image = np.bincount(detections.images, minlength=len(truth))
    class_objects = np.bincount(truth.labels, minlength=len(truth.class_names))
    class_detections = np.bincount(detections.labels, minlength=len(truth.class_names))
    meets_any, meets_class, found = _meetings(truth, detections)
    share_any = float(meets_any.mean()) if len(detections) else None
    share_class = float(meets_class.mean()) if len(detections) else None
    findings = [
        *_emptiness(truth, detections),
        *_other_forms(truth, detections, share_any),
        *_other_labels(truth, detections, share_any, share_class),
        *_classes_apart(truth, class_objects, class_detections),
        *_images_apart(truth, with_objects & (per_image == 0), len(detections)),
        *_odd_scores(detections),
        *_too_many(detections),
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
        found=found,
        findings=tuple(findings),
    )


def _meetings(truth: Annotations, detections: DetectionTable) -> tuple[np.ndarray, np.ndarray, float | None]:
    """(D,) meets an object of any class; (D,) of its own class; share of the objects met by their class."""
    pairs = overlapping_pairs(truth, detections)
    pairs = pairs.where(pairs.ious >= MATCH)
    same = pairs.where(detections.labels[pairs.detections] == truth.labels[pairs.objects])
    meets_any, meets_class = np.zeros((2, len(detections)), bool)
    meets_any[pairs.detections] = True
    meets_class[same.detections] = True
    met = np.zeros(len(truth.labels), bool)
    met[same.objects] = True
    wanted = ~(truth.difficult | truth.crowd)
    return meets_any, meets_class, float(met[wanted].mean()) if wanted.any() else None


def _emptiness(truth: Annotations, detections: DetectionTable) -> list[str]:
    findings = []
    if not len(truth.labels):
        findings.append("the ground truth has no objects: every figure is n/a")
    if not len(detections):
        findings.append(
            "there are no detections: is the score threshold (test.score_thresh) above every score?"
        )
    return findings


def _other_forms(truth: Annotations, detections: DetectionTable, share: float | None) -> list[str]:
    """Boxes without area, outside their picture, in other units, or that fit better when read another way."""
    boxes = detections.boxes
    if share is None:
        return []
    findings = []
    flat = float(np.mean((boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])))
    if flat:
        cause = ": xywh taken for xyxy?" if flat > 0.1 else ""
        findings.append(f"{_percent(flat)} of the boxes have x2 <= x1 or y2 <= y1{cause}")
    sizes = truth.sizes[detections.images].astype(np.float32)  # (D, 2) height, width
    normalized = bool((np.abs(boxes) <= 2).all())
    if normalized:
        findings.append("all coordinates lie within 0..2: normalized to the picture's size, not in pixels?")
    elif (sizes > 0).all():
        beyond = (boxes[:, 2] > sizes[:, 1] + 1) | (boxes[:, 3] > sizes[:, 0] + 1)
        leaving = float(np.mean(beyond | (boxes[:, :2] < -1).any(axis=1)))
        if leaving > 0.05:
            findings.append(f"{_percent(leaving)} of the boxes leave their picture: pixels of a resized one?")
    if share < FEW and len(truth.labels):
        findings += _better_reading(truth, detections, share, normalized)
    return findings


def _better_reading(
    truth: Annotations, detections: DetectionTable, share: float, normalized: bool
) -> list[str]:
    """The reading of the four numbers that fits the objects clearly better than the present one, if any."""
    detections = _some(detections)
    x1, y1, x2, y2 = (column[:, None] for column in detections.boxes.T)
    height, width = (column[:, None] for column in truth.sizes[detections.images].astype(np.float32).T)
    readings = {
        "the boxes look like xywh taken for xyxy": (x1, y1, x1 + x2, y1 + y2),
        "the boxes look like xyxy taken for xywh": (x1, y1, x2 - x1, y2 - y1),
        "the boxes look like center x, center y, w, h taken for xyxy": (
            x1 - x2 / 2,
            y1 - y2 / 2,
            x1 + x2 / 2,
            y1 + y2 / 2,
        ),
        "x and y look exchanged": (y1, x1, y2, x2),
    }
    if normalized:
        readings["the boxes look normalized to 0..1"] = (x1 * width, y1 * height, x2 * width, y2 * height)
    shares = {}
    for name, columns in readings.items():
        best = overlapping_pairs(truth, detections, np.concatenate(columns, axis=1)).best()
        shares[name] = float((best.ious >= MATCH).sum()) / len(detections)
    name = max(shares, key=shares.__getitem__)
    if shares[name] < share + GAIN:
        return []
    return [f"{name}: read so, {_percent(shares[name])} would meet an object, not {_percent(share)}"]


def _some(detections: DetectionTable) -> DetectionTable:
    """At most `SAMPLE` detections, spread evenly."""
    every = slice(None, None, -(-len(detections) // SAMPLE))
    columns = (detections.images, detections.boxes, detections.scores, detections.labels)
    return DetectionTable(*(column[every] for column in columns))


def _other_labels(
    truth: Annotations, detections: DetectionTable, share_any: float | None, share_class: float | None
) -> list[str]:
    """Boxes that meet objects of another class: a class list in another order, ids that begin elsewhere."""
    if not share_any or share_class is None or share_class >= FEW * share_any:
        return []
    best = overlapping_pairs(truth, detections).best()
    best = best.where(best.ious >= MATCH)
    said, true = detections.labels[best.detections], truth.labels[best.objects]
    message = (
        f"{_percent(share_any)} of the detections meet an object but only {_percent(share_class)} one of "
        "their own class: is the list of classes the same, in the same order?"
    )
    shifts, counts = np.unique(true - said, return_counts=True)
    shift = int(shifts[counts.argmax()])
    if shift and counts.max() > FEW * counts.sum() and len(truth.class_names) > 2:
        message += f" Labels look shifted by {shift:+d} (category ids that begin elsewhere?)"
    return [message]


def _classes_apart(truth: Annotations, objects: np.ndarray, detections: np.ndarray) -> list[str]:
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


def _images_apart(truth: Annotations, missed: np.ndarray, detections: int) -> list[str]:
    """Pictures with objects and no detections, where they are many."""
    total = int((np.diff(truth.offsets) > 0).sum())
    if not detections or missed.sum() <= 0.1 * total:
        return []
    names = [truth.image_ids[i] for i in np.flatnonzero(missed)[:5].tolist()]
    more = ", ..." if missed.sum() > len(names) else ""
    return [
        f"{int(missed.sum())} of {total} pictures with objects have no detections "
        f"({', '.join(names)}{more}): detections of another split, or of a part of it?"
    ]


def _odd_scores(detections: DetectionTable) -> list[str]:
    scores = detections.scores
    if len(scores) < 2:
        return []
    findings = []
    if scores.min() < 0 or scores.max() > 1:
        findings.append("scores lie outside 0..1: logits, or per cent? (only their order counts)")
    if scores.min() == scores.max():
        findings.append(f"all scores are {scores[0]:g}: AP depends on the order of equal scores")
    return findings


def _too_many(detections: DetectionTable) -> list[str]:
    groups = np.stack((detections.images, detections.labels), axis=1)
    counts = np.unique(groups, axis=0, return_counts=True)[1] if len(groups) else np.zeros(0, int)
    crowded = int((counts > COCO_LIMIT).sum())
    if not crowded:
        return []
    return [
        f"COCO counts the {COCO_LIMIT} best detections of a class in a picture; "
        f"{crowded} times there are more"
    ]


def _quantiles(scores: np.ndarray) -> tuple[float, float, float] | None:
    if not len(scores):
        return None
    return float(scores.min()), float(np.median(scores)), float(scores.max())


def _percent(share: float | None) -> str:
    return "n/a" if share is None else f"{100 * share:.1f} %"
