"""COCO's twelve figures, by pycocotools behind a guard that makes any data regular.

pycocotools takes annotation id 0 for "no match", fails without `area` or `iscrowd` and on an empty list, and
accepts NaN; the guard builds its input from flat arrays, so that none of these can occur. AP: mean over IoU
.50:.05:.95, 101 recalls and classes; at most 100 detections of a class in a picture; sizes by area 32^2 and
96^2 pixels.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from detres.data.records import Annotations, DetectionTable
from detres.evaluation.overlaps import overlapping_pairs, refuse_irregular

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
SIZES = {"s": ("small", "up to 32^2 px"), "m": ("medium", "32^2 to 96^2 px"), "l": ("large", "from 96^2 px")}
SIZE_RANGES = {"": (0.0, 1e10), "s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)}


@dataclass(frozen=True)
class CocoResult:
    """The figures of a split.

    Attributes:
        figures: `AP` .. `ARl` in 0..1, None where a figure does not exist.
        classes: For each class `AP`, `AP50` and the number of `objects` (crowd regions not counted).
        images: Number of pictures.
        detections: Number of detections.
        reasons: Why a figure is None or 0.0.
        class_reasons: Why a class has no figure, or 0.0.
    """

    figures: dict[str, float | None]
    classes: dict[str, dict[str, float | int | None]]
    images: int
    detections: int
    reasons: dict[str, str]
    class_reasons: dict[str, str]

    def to_json(self) -> dict[str, object]:
        """The result as `--json` has it."""
        return asdict(self)


def evaluate_coco(truth: Annotations, detections: DetectionTable) -> CocoResult:
    """COCO's twelve figures, and AP and AP50 of each class.

    Crowd regions are ignored. VOC's `difficult` objects are ordinary objects here, as they are wherever VOC
    data is converted to COCO's form and measured by pycocotools (COCO knows no such flag); `evaluate_voc`
    ignores them.

    Args:
        truth: The objects.
        detections: Detections, in any order.

    Raises:
        DataError: A score or box that is not finite, a picture or label that `truth` does not have.
    """
    refuse_irregular(truth, detections)
    evaluation = matched(truth, detections)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    figures = {name: _existing(value) for name, value in zip(FIGURES, evaluation.stats, strict=True)}
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # (T, 101, K), all sizes, 100 detections
    objects = np.bincount(truth.labels[~truth.crowd], minlength=len(truth.class_names))
    classes: dict[str, dict[str, float | int | None]] = {
        name: {
            "AP": _existing(precision[:, :, label].mean()),
            "AP50": _existing(precision[0, :, label].mean()),
            "objects": int(objects[label]),
        }
        for label, name in enumerate(truth.class_names)
    }
    reasons, class_reasons = _reasons(figures, classes, truth, detections)
    return CocoResult(figures, classes, len(truth), len(detections), reasons, class_reasons)


def matched(truth: Annotations, detections: DetectionTable, *, all_sizes_only: bool = False) -> Any:
    """A `pycocotools.cocoeval.COCOeval` of boxes with its matching done (`evalImgs`), on data made regular.

    Picture i has the number `picture_numbers(truth)[i]`, class k the number k + 1.

    Args:
        truth: The objects.
        detections: Detections that `refuse_irregular` has passed.
        all_sizes_only: Match for objects of all sizes only (a quarter of the work), not for each of the
            three.
    """
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_regular_truth(truth), _regular_detections(truth, detections), "bbox")
        if all_sizes_only:
            evaluation.params.areaRng = evaluation.params.areaRng[:1]
            evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.evaluate()
    return evaluation


def picture_numbers(truth: Annotations) -> np.ndarray:
    """(N,) int64, numbers from 1 in the order of the data's own ids.

    pycocotools goes through the pictures in order of their ids, and equal scores of two pictures keep that
    order.
    """
    ids = [truth.image_ids[i] for i in range(len(truth))]
    order = sorted(
        range(len(ids)), key=[int(i) for i in ids].__getitem__ if all(map(_is_int, ids)) else ids.__getitem__
    )
    numbers = np.zeros(len(ids), np.int64)
    numbers[order] = np.arange(1, len(ids) + 1)
    return numbers


def _is_int(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _regular_truth(truth: Annotations) -> Any:
    images = picture_numbers(truth)
    of_image = np.repeat(images, np.diff(truth.offsets))
    return _dataset(
        images, of_image, truth.boxes, truth.labels, truth.areas, truth.crowd, None, truth.class_names
    )


def _regular_detections(truth: Annotations, detections: DetectionTable) -> Any:
    images = picture_numbers(truth)
    boxes = detections.boxes.astype(np.float64)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    crowd = np.zeros(len(detections), bool)
    numbers = images[detections.images]
    return _dataset(
        images, numbers, boxes, detections.labels, areas, crowd, detections.scores, truth.class_names
    )


def _dataset(
    images: np.ndarray,
    of_image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    areas: np.ndarray,
    crowd: np.ndarray,
    scores: np.ndarray | None,
    class_names: tuple[str, ...],
) -> Any:
    """A `pycocotools.coco.COCO` with annotation ids from 1, every field filled."""
    from pycocotools.coco import COCO

    sides = boxes.astype(np.float64)
    sides[:, 2:] -= sides[:, :2]
    columns = (
        of_image.tolist(),
        (labels + 1).tolist(),
        sides.tolist(),
        areas.tolist(),
        crowd.astype(int).tolist(),
    )
    keys = ("image_id", "category_id", "bbox", "area", "iscrowd")
    annotations: Any = [dict(zip(keys, values, strict=True)) for values in zip(*columns, strict=True)]
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    if scores is not None:
        for annotation, score in zip(annotations, scores.tolist(), strict=True):
            annotation["score"] = score
    dataset: Any = COCO()
    dataset.dataset = {
        "images": [{"id": number} for number in images.tolist()],
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(class_names)],
    }
    dataset.createIndex()
    return dataset


def _existing(value: float) -> float | None:
    """A figure of pycocotools, its -1 as None."""
    return None if value < 0 else float(value)


def _reasons(
    figures: dict[str, float | None],
    classes: dict[str, dict[str, float | int | None]],
    truth: Annotations,
    detections: DetectionTable,
) -> tuple[dict[str, str], dict[str, str]]:
    """For every figure that is None or 0.0, of the whole and of the classes, why."""
    pairs = overlapping_pairs(truth, detections)
    same_class = detections.labels[pairs.detections] == truth.labels[pairs.objects]
    pairs = pairs.where(same_class & ~truth.crowd[pairs.objects])
    areas = truth.areas[pairs.objects]
    reasons = {}
    for name, value in figures.items():
        if value:
            continue
        smallest, largest = SIZE_RANGES[name[2:] if name[2:] in SIZES else ""]
        closest = pairs.ious[(areas >= smallest) & (areas <= largest)].max(initial=0.0)
        reasons[name] = _absent(name, truth) if value is None else _zero(name, detections, closest)
    class_reasons = {}
    for label, (name, figure) in enumerate(classes.items()):
        if figure["AP"] is None:
            only = "only crowd regions" if (truth.labels == label).any() else "no objects"
            class_reasons[name] = f"{only} in the ground truth: left out of the mean"
        elif not figure["AP"]:
            closest = pairs.ious[truth.labels[pairs.objects] == label].max(initial=0.0)
            of_class = bool((detections.labels == label).any())
            class_reasons[name] = (
                _zero("AP", detections, closest) if of_class else "no detections of this class"
            )
    return reasons, class_reasons


def _absent(name: str, truth: Annotations) -> str:
    if not len(truth.labels):
        return "the ground truth has no objects"
    if truth.crowd.all():
        return "the ground truth has only crowd regions"
    size, area = SIZES[name[2:]]
    return f"no {size} objects (area {area}) in the ground truth"


def _zero(name: str, detections: DetectionTable, closest: float) -> str:
    if not len(detections):
        return "there are no detections"
    least = 0.75 if name == "AP75" else 0.5
    objects = f"{SIZES[name[2:]][0]} objects" if name[2:] in SIZES else "objects"
    if closest < least:
        return f"the best IoU of detections with {objects} of their class is {closest:.2f}, below {least}"
    most = {"AR1": 1, "AR10": 10}.get(name, 100)
    return f"none of the {most} best detections of a class in a picture matches one of its {objects}"
