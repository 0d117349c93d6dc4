"""The engines of COCO's evaluation on drawn objects and detections of a whole split."""

from __future__ import annotations

from functools import partial

import numpy as np

from benchmarks.cases import Agreement, Case, Prepared
from benchmarks.detectors import CLASSES, SEED
from detres.data.records import Annotations, DetectionTable, Strings
from detres.evaluation.coco import CocoResult, evaluate_coco
from detres.evaluation.engines import Engine, select_engine

DETECTIONS_PER_IMAGE = 100
OBJECTS_PER_IMAGE = 860_000 / 120_000  # COCO's train2017
CLASS_NAMES = tuple(f"class {number}" for number in range(CLASSES))


def evaluate_cases(images: int = 5000) -> list[Case]:
    """One case: the engine that `auto` takes, beside pycocotools (the reference), on `images` images."""
    taken = select_engine("auto")
    note = f"detres with evaluation.engine: auto takes {taken}"
    if taken == "pycocotools":
        note += "; hotcoco, which is much faster, is not installed (extra 'fast')"
    return [
        Case(
            name="evaluate",
            ours=partial(_prepare, images, "auto"),
            peers={"pycocotools": {"": partial(_prepare, images, "pycocotools")}},
            compare=compare_figures,
            note=note,
        )
    ]


def compare_figures(ours: CocoResult, theirs: CocoResult) -> Agreement:
    """The largest difference of the twelve figures and of each class's AP: none beyond rounding."""
    difference = 0.0
    for name, a, b in _figures(ours, theirs):
        if (a is None) != (b is None):
            return Agreement(1.0, f"{name} is {a} by ours, {b} by theirs")
        difference = max(difference, abs((a or 0.0) - (b or 0.0)))
    problem = f"a figure differs by {difference:.3g}" if difference > 1e-9 else ""
    return Agreement(difference, problem)


def random_objects(images: int, per_image: float) -> Annotations:
    """Objects of `images` pictures of 640 x 480, about `per_image` in each, of sizes from 8 to 256 px."""
    generator = np.random.default_rng(SEED)
    counts = generator.poisson(per_image, images)
    total = int(counts.sum())
    sides = np.exp(generator.uniform(np.log(8), np.log(256), (total, 2)))
    corners = generator.random((total, 2)) * ((640, 480) - sides)
    return Annotations(
        paths=Strings([f"{number:012d}.jpg" for number in range(images)]),
        image_ids=Strings([str(number + 1) for number in range(images)]),
        sizes=np.tile(np.array([480, 640], np.int64), (images, 1)),
        upright=np.ones(images, bool),
        offsets=np.concatenate(([0], counts.cumsum())).astype(np.int64),
        boxes=np.concatenate((corners, corners + sides), axis=1).astype(np.float32),
        labels=generator.integers(CLASSES, size=total),
        crowd=generator.random(total) < 0.01,
        difficult=np.zeros(total, bool),
        areas=sides.prod(axis=1) * 0.6,  # of a segment, in a box
        class_names=CLASS_NAMES,
        source="the benchmark",
    )


def random_detections(truth: Annotations, per_image: int) -> DetectionTable:
    """`per_image` detections in each picture: half around its objects, often of their class; half anywhere."""
    generator = np.random.default_rng(SEED + 1)
    images = np.repeat(np.arange(len(truth)), per_image)
    random = random_objects(len(truth), per_image)
    rows = generator.integers(max(len(random.labels), 1), size=len(images))
    boxes, labels = random.boxes[rows].astype(np.float64), generator.integers(CLASSES, size=len(images))
    counts = np.diff(truth.offsets)[images]
    near = (generator.random(len(images)) < 0.5) & (counts > 0)
    objects = truth.offsets[images[near]] + (generator.random(near.sum()) * counts[near]).astype(np.int64)
    sides = (truth.boxes[objects, 2:] - truth.boxes[objects, :2]).astype(np.float64)
    moved = np.concatenate((sides, sides), axis=1) * generator.normal(0, 0.1, (len(objects), 4))
    boxes[near] = truth.boxes[objects] + moved
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    same = generator.random(len(objects)) < 0.8
    labels[near] = np.where(same, truth.labels[objects], labels[near])
    scores = generator.random(len(images)) * np.where(near, 1.0, 0.5)
    return DetectionTable(images, boxes.astype(np.float32), scores, labels)


def _prepare(images: int, engine: Engine) -> Prepared:
    truth = random_objects(images, OBJECTS_PER_IMAGE)
    found = random_detections(truth, DETECTIONS_PER_IMAGE)
    return Prepared(lambda: evaluate_coco(truth, found, engine=engine))


def _figures(ours: CocoResult, theirs: CocoResult) -> list[tuple[str, float | None, float | None]]:
    """Name and both values of every figure."""
    whole = [(name, value, theirs.figures[name]) for name, value in ours.figures.items()]
    return whole + [
        (f"AP of {name}", figures["AP"], theirs.classes[name]["AP"]) for name, figures in ours.classes.items()
    ]
