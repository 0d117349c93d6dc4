"""COCO's twelve figures, by pycocotools or hotcoco, for any data.

pycocotools takes annotation id 0 for "no match", fails without `area` or `iscrowd` and on an empty list, and accepts
NaN. The engines' input is built from flat arrays, so that none of these can occur. AP is the mean over IoU .50:.05:.95,
101 recalls and classes, with at most 100 detections per class and image; sizes are split at areas 32^2 and 96^2 pixels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from detres.data.records import Annotations, DetectionTable
from detres.evaluation.engines import Engine, compute_metrics, select_engine
from detres.evaluation.overlaps import Pairs, check_detections, overlapping_pairs

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
SIZES = {"s": ("small", "up to 32^2 px"), "m": ("medium", "32^2 to 96^2 px"), "l": ("large", "from 96^2 px")}
SIZE_RANGES = {"": (0.0, 1e10), "s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)}


@dataclass(frozen=True)
class CocoResult:
    """The figures of a split.

    Attributes:
        figures: `AP` .. `ARl` in 0..1, None if a figure does not exist.
        classes: For each class `AP`, `AP50` and the number of `objects` (crowd regions not counted).
        images: Number of images.
        detections: Number of detections.
        reasons: Why a figure is None or 0.0.
        class_reasons: Why a class has no figure, or 0.0.
        engine: What computed the figures, `pycocotools` or `hotcoco`.
    """

    figures: dict[str, float | None]
    classes: dict[str, dict[str, float | int | None]]
    images: int
    detections: int
    reasons: dict[str, str]
    class_reasons: dict[str, str]
    engine: str

    def to_json(self) -> dict[str, object]:
        """The result as `--json` has it."""
        return asdict(self)


def evaluate_coco(truth: Annotations, detections: DetectionTable, *, engine: Engine = "auto") -> CocoResult:
    """COCO's twelve figures, and AP and AP50 of each class.

    Crowd regions are ignored. VOC's `difficult` objects count like all others, as they do when VOC data is converted to
    COCO's format, which has no such flag; `evaluate_voc` ignores them.

    Args:
        truth: The objects.
        detections: Detections, in any order.
        engine: `pycocotools`; `hotcoco`, which gives the same figures faster; `auto` is hotcoco if it is installed.

    Raises:
        DataError: A score or box that is not finite, an image or label that `truth` does not have.
        UserError: The engine is not installed.
    """
    check_detections(truth, detections)
    program = select_engine(engine)
    computed = compute_metrics(truth, detections, program)
    figures = {name: _none_if_absent(value) for name, value in zip(FIGURES, computed.figures, strict=True)}
    precision = computed.precision[:, :, :, 0, 2]  # (T, 101, K), all sizes, 100 detections
    objects = np.bincount(truth.labels[~truth.crowd], minlength=len(truth.class_names))
    classes: dict[str, dict[str, float | int | None]] = {
        name: {
            "AP": _none_if_absent(precision[:, :, label].mean()),
            "AP50": _none_if_absent(precision[0, :, label].mean()),
            "objects": int(objects[label]),
        }
        for label, name in enumerate(truth.class_names)
    }
    reasons, class_reasons = _reasons(figures, classes, truth, detections)
    return CocoResult(figures, classes, len(truth), len(detections), reasons, class_reasons, program)


def _none_if_absent(value: float) -> float | None:
    """An engine's figure, with None for its -1."""
    return None if value < 0 else float(value)


def _reasons(
    figures: dict[str, float | None],
    classes: dict[str, dict[str, float | int | None]],
    truth: Annotations,
    detections: DetectionTable,
) -> tuple[dict[str, str], dict[str, str]]:
    """The reason of every figure that is None or 0.0, of the split and of the classes."""
    if 0.0 in figures.values():
        zero_classes = np.arange(len(classes))
    else:
        zero_classes = np.array([k for k, figure in enumerate(classes.values()) if figure["AP"] == 0.0], int)
    pairs = _pairs_of(zero_classes, truth, detections)
    areas = truth.areas[pairs.objects]
    reasons = {}
    for name, value in figures.items():
        if value:
            continue
        smallest, largest = SIZE_RANGES[name[2:] if name[2:] in SIZES else ""]
        closest = pairs.ious[(areas >= smallest) & (areas <= largest)].max(initial=0.0)
        reasons[name] = (
            _reason_of_none(name, truth) if value is None else _reason_of_zero(name, detections, closest)
        )
    class_reasons = {}
    for label, (name, figure) in enumerate(classes.items()):
        if figure["AP"] is None:
            only = "only crowd regions" if (truth.labels == label).any() else "no objects"
            class_reasons[name] = f"{only} in the ground truth: left out of the mean"
        elif not figure["AP"]:
            closest = pairs.ious[truth.labels[pairs.objects] == label].max(initial=0.0)
            any_detection = bool((detections.labels == label).any())
            class_reasons[name] = (
                _reason_of_zero("AP", detections, closest) if any_detection else "no detections of this class"
            )
    return reasons, class_reasons


def _pairs_of(labels: np.ndarray, truth: Annotations, detections: DetectionTable) -> Pairs:
    """Overlapping pairs of a detection and an object of the same class, for these classes, without crowd regions."""
    rows = np.flatnonzero(np.isin(detections.labels, labels))
    table = DetectionTable(
        detections.images[rows], detections.boxes[rows], detections.scores[rows], detections.labels[rows]
    )
    pairs = overlapping_pairs(truth, table)
    same_class = table.labels[pairs.detections] == truth.labels[pairs.objects]
    return pairs.where(same_class & ~truth.crowd[pairs.objects])


def _reason_of_none(name: str, truth: Annotations) -> str:
    if not len(truth.labels):
        return "the ground truth has no objects"
    if truth.crowd.all():
        return "the ground truth has only crowd regions"
    size, area = SIZES[name[2:]]
    return f"no {size} objects (area {area}) in the ground truth"


def _reason_of_zero(name: str, detections: DetectionTable, closest: float) -> str:
    if not len(detections):
        return "there are no detections"
    least = 0.75 if name == "AP75" else 0.5
    objects = f"{SIZES[name[2:]][0]} objects" if name[2:] in SIZES else "objects"
    if closest < least:
        return f"the best IoU of detections with {objects} of their class is {closest:.2f}, below {least}"
    most = {"AR1": 1, "AR10": 10}.get(name, 100)
    return f"none of the {most} best detections per class and image matches one of its {objects}"
