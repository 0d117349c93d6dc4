"""How time and memory of ours grow with regions, image area, batch, classes, objects and images; one thing at a time.

The paper's arithmetic grows with the image's area (trunk and RPN) and with the number of regions (conv5_x); the rest
should be too little to see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.cases import Case
from benchmarks.detectors import DetectorOptions
from benchmarks.evaluating import EvaluationOptions, evaluate_cases
from benchmarks.inferring import infer_cases
from benchmarks.training_steps import train_cases


@dataclass(frozen=True)
class GrowthOptions:
    """What grows, from where.

    Attributes:
        detector: With one precision.
        areas: Of the pictures, beside the detector's.
        proposals: Regions a picture at test.
        batches: Pictures at once, at test and in training.
        classes: Of the detector.
        objects: In each picture of a training step.
        images: Pictures of an evaluation.
    """

    detector: DetectorOptions = field(default_factory=lambda: DetectorOptions(precisions=("float32",)))
    areas: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    proposals: tuple[int, ...] = (50, 100, 300, 1000, 2000)
    batches: tuple[int, ...] = (1, 2, 4)
    classes: tuple[int, ...] = (1, 20, 80, 320)
    objects: tuple[int, ...] = (1, 8, 64, 512)
    images: tuple[int, ...] = (1000, 5000, 20000)


def growth_cases(options: GrowthOptions) -> list[Case]:
    """One case for each value, ours alone; seconds a picture at test, a step in training, an evaluation."""
    base = options.detector
    one, pair = replace(base, batch=1), replace(base, batch=2)
    return [
        *(_ours(infer_cases, replace(one, proposals=n), f"infer {n} proposals") for n in options.proposals),
        *(_ours(infer_cases, _scaled(one, area), f"infer {area:g} x the area") for area in options.areas),
        *(_ours(infer_cases, replace(base, batch=n), f"infer batch {n}") for n in options.batches),
        *(_ours(infer_cases, replace(one, classes=n), f"infer {n} classes") for n in options.classes),
        *(_ours(train_cases, replace(base, batch=n), f"train batch {n}") for n in options.batches),
        *(_ours(train_cases, replace(pair, objects=n), f"train {n} objects") for n in options.objects),
        *(_ours(evaluate_cases, EvaluationOptions(n), f"evaluate {n} images") for n in options.images),
    ]


def _ours(make: Callable[[Any], list[Case]], options: Any, name: str) -> Case:
    (case,) = make(options)
    return replace(case, name=name, peers=(), note="")


def _scaled(options: DetectorOptions, area: float) -> DetectorOptions:
    height, width = (round(side * area**0.5) for side in options.size)
    return replace(options, size=(height, width))
