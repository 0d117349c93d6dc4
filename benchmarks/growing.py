"""How time and memory of ours grow with regions, image area, batch, classes, objects and images; one thing at a time.

The paper's arithmetic grows with the image's area (trunk and RPN) and with the number of regions (conv5_x); the rest
should be too little to see.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.cases import Case
from benchmarks.detectors import DetectorOptions
from benchmarks.evaluating import evaluate_cases
from benchmarks.inferring import infer_cases
from benchmarks.training_steps import train_cases

PROPOSALS = (50, 100, 300, 1000, 2000)  # regions an image at test
AREAS = (0.25, 0.5, 1.0, 2.0)  # of the images, beside the detector's
BATCHES = (1, 2, 4)  # images at once, at test and in training
CLASSES = (1, 20, 80, 320)
OBJECTS = (1, 8, 64, 512)  # in each image of a training step
IMAGES = (1000, 5000, 20000)  # of an evaluation


def growth_cases(options: DetectorOptions) -> list[Case]:
    """One case for each value, ours alone; seconds an image at test, a step in training, an evaluation.

    Args:
        options: What grows; with one precision.
    """
    one, pair = replace(options, batch=1), replace(options, batch=2)
    (height, width), cases = options.size, {}
    for n in PROPOSALS:
        cases[f"infer {n} proposals"] = infer_cases(replace(one, proposals=n))
    for area in AREAS:
        size = round(height * area**0.5), round(width * area**0.5)
        cases[f"infer {area:g} x the area"] = infer_cases(replace(one, size=size))
    for n in BATCHES:
        cases[f"infer batch {n}"] = infer_cases(replace(one, batch=n))
    for n in CLASSES:
        cases[f"infer {n} classes"] = infer_cases(replace(one, classes=n))
    for n in BATCHES:
        cases[f"train batch {n}"] = train_cases(replace(one, batch=n))
    for n in OBJECTS:
        cases[f"train {n} objects"] = train_cases(replace(pair, objects=n))
    for n in IMAGES:
        cases[f"evaluate {n} images"] = evaluate_cases(n)
    return [replace(case, name=name, peers={}, note="") for name, (case,) in cases.items()]
