"""The programs that compute COCO's metrics, pycocotools and hotcoco, and the conversion of data for them.

pycocotools (Lin et al. 2014) defines the metrics; hotcoco computes the same ones in parallel machine code. They treat
annotation id 0, missing fields and NaN in their own ways, so that here they get ids from 1 and every field.

N images, M objects, D detections, K classes, T IoU thresholds, A ranges of area, L limits of detections.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from detres.data.records import Annotations, DetectionTable
from detres.errors import UserError

Engine = Literal["auto", "pycocotools", "hotcoco"]
HOTCOCO_MIN, HOTCOCO_END = (1, 3), (2,)  # versions whose figures the tests compare with pycocotools'


@dataclass(frozen=True)
class EngineResult:
    """The figures of an engine, -1 where a figure does not exist.

    Attributes:
        figures: (12,) float64 in COCO's order: AP, AP50, AP75, APs .. ARl.
        precision: (T, 101, K, A, L) float64 at IoU .50:.05:.95 and recall 0, .01 .. 1; area: all, small, medium,
            large; at most 1, 10, 100 detections per class and image.
    """

    figures: np.ndarray
    precision: np.ndarray


def compute_metrics(truth: Annotations, detections: DetectionTable, engine: str) -> EngineResult:
    """The figures by an engine.

    Args:
        truth: The objects.
        detections: Detections that passed `check_detections`.
        engine: What `select_engine` returned.
    """
    matcher = _match_with_hotcoco if engine == "hotcoco" else match_with_pycocotools
    evaluation = matcher(truth, detections)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    return EngineResult(np.asarray(evaluation.stats, np.float64), evaluation.eval["precision"])


def select_engine(engine: Engine) -> Literal["pycocotools", "hotcoco"]:
    """The engine to use; `auto` is hotcoco if a tested version is installed, else pycocotools.

    Raises:
        UserError: No such engine, or hotcoco without a tested version of it.
    """
    if engine not in ("auto", "pycocotools", "hotcoco"):
        raise UserError(f"engine '{engine}': should be auto, pycocotools or hotcoco")
    if engine == "pycocotools":
        return engine
    installed = _hotcoco_version()
    if installed is not None and HOTCOCO_MIN <= installed < HOTCOCO_END:
        try:
            import hotcoco  # noqa: F401  # it may be installed for another system
        except ImportError as error:
            if engine == "auto":
                return "pycocotools"
            raise UserError(f"engine 'hotcoco': it is installed but cannot be imported: {error}") from error
        return "hotcoco"
    if engine == "auto":
        return "pycocotools"
    state = "is not installed"
    if installed is not None:
        state = f"{'.'.join(map(str, installed))} is not a tested version"
    raise UserError(f"engine 'hotcoco': hotcoco {state}; run `pip install 'hotcoco>=1.3,<2'` (extra 'fast')")


def match_with_pycocotools(
    truth: Annotations, detections: DetectionTable, *, all_sizes_only: bool = False
) -> Any:
    """A `pycocotools.cocoeval.COCOeval` of boxes with its matching done (`evalImgs`).

    Image i has the id `number_images(truth)[i]`, class k the id k + 1.

    Args:
        truth: The objects.
        detections: Detections that passed `check_detections`.
        all_sizes_only: Match only for objects of all sizes together (a quarter of the work), not also for each size.
    """
    from pycocotools.cocoeval import COCOeval

    numbers = number_images(truth)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            _pycocotools_truth(truth, numbers), _pycocotools_detections(truth, detections, numbers), "bbox"
        )
        if all_sizes_only:
            evaluation.params.areaRng = evaluation.params.areaRng[:1]
            evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.evaluate()
    return evaluation


def number_images(truth: Annotations) -> np.ndarray:
    """(N,) int64, numbers from 1 in the order of the data's own ids.

    COCO's metrics process the images in the order of their ids, and equal scores in two images keep that order.
    """
    ids = [truth.image_ids[i] for i in range(len(truth))]
    keys = [int(i) for i in ids] if all(map(_is_int, ids)) else ids
    order = sorted(range(len(ids)), key=keys.__getitem__)
    numbers = np.zeros(len(ids), np.int64)
    numbers[order] = np.arange(1, len(ids) + 1)
    return numbers


def _match_with_hotcoco(truth: Annotations, detections: DetectionTable) -> Any:
    """The same as a `hotcoco.COCOeval`, from arrays, without a Python object for each object or detection."""
    import hotcoco

    numbers = number_images(truth)
    objects = hotcoco.COCO.from_arrays(
        _images(numbers),
        _categories(truth),
        np.repeat(numbers, np.diff(truth.offsets)),
        truth.labels + 1,
        _sides(truth.boxes),
        area=truth.areas.astype(np.float64),
        iscrowd=truth.crowd,
    )
    sides, scores = _sides(detections.boxes), detections.scores
    rows = np.column_stack([numbers[detections.images], sides, scores, detections.labels + 1])  # (D, 7)
    evaluation = hotcoco.COCOeval(objects, objects.load_res(rows), "bbox")
    evaluation.evaluate()
    return evaluation


def _hotcoco_version() -> tuple[int, ...] | None:
    try:
        version = importlib.metadata.version("hotcoco")
    except importlib.metadata.PackageNotFoundError:
        return None
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _is_int(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _images(numbers: np.ndarray) -> list[dict[str, int]]:
    return [{"id": number} for number in numbers.tolist()]


def _categories(truth: Annotations) -> list[dict[str, Any]]:
    return [{"id": label + 1, "name": name} for label, name in enumerate(truth.class_names)]


def _sides(boxes: np.ndarray) -> np.ndarray:
    """(B, 4) xyxy -> (B, 4) float64 of x, y, width, height."""
    sides = boxes.astype(np.float64)
    sides[:, 2:] -= sides[:, :2]
    return sides


def _pycocotools_truth(truth: Annotations, numbers: np.ndarray) -> Any:
    images = np.repeat(numbers, np.diff(truth.offsets))
    sides = _sides(truth.boxes)
    return _pycocotools_dataset(truth, numbers, images, sides, truth.labels, truth.areas, truth.crowd, None)


def _pycocotools_detections(truth: Annotations, detections: DetectionTable, numbers: np.ndarray) -> Any:
    sides = _sides(detections.boxes)
    areas, crowd = sides[:, 2] * sides[:, 3], np.zeros(len(detections), bool)
    images = numbers[detections.images]
    return _pycocotools_dataset(
        truth, numbers, images, sides, detections.labels, areas, crowd, detections.scores
    )


def _pycocotools_dataset(
    truth: Annotations,
    numbers: np.ndarray,
    images: np.ndarray,
    sides: np.ndarray,
    labels: np.ndarray,
    areas: np.ndarray,
    crowd: np.ndarray,
    scores: np.ndarray | None,
) -> Any:
    """A `pycocotools.coco.COCO` with annotation ids from 1 and every field."""
    from pycocotools.coco import COCO

    columns = {
        "id": np.arange(1, len(images) + 1),
        "image_id": images,
        "category_id": labels + 1,
        "bbox": sides,
        "area": areas,
        "iscrowd": crowd.astype(np.int64),
    }
    if scores is not None:
        columns["score"] = scores
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    dataset: Any = COCO()
    dataset.dataset = {
        "images": _images(numbers),
        "annotations": [dict(zip(columns, row, strict=True)) for row in rows],
        "categories": _categories(truth),
    }
    dataset.createIndex()
    return dataset
