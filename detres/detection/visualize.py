"""Images that a training run draws unasked: its first batch as the network sees it, and validation detections.

Annotations are dashed. Detections are solid and carry their score.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detres.data.detection_samples import DetectionSample, load_image
from detres.data.drawing import draw_annotations, draw_detections, write_sheet
from detres.data.records import Annotations, DetectionTable
from detres.data.transforms import resize_image

COLUMNS = 4
DRAWN_SCORE = 0.5  # detections under this score would hide the image
READABLE_SIDE = 240  # smaller images are enlarged, because labels have one size
ENLARGED_SIDE = 4096  # nothing is enlarged to more
LARGEST_SIDE = 640  # larger ones are shrunk, because a sheet holds many


def draw_samples(samples: Sequence[DetectionSample], class_names: Sequence[str]) -> list[np.ndarray]:
    """Samples with their boxes, (h, w, 3) uint8 RGB each; small images are enlarged, pixel by pixel.

    Args:
        samples: A training batch, after resizing and augmentation.
        class_names: K names.
    """
    drawn = []
    for sample in samples:
        image = sample.image.permute(1, 2, 0).numpy()
        factor = -(-READABLE_SIDE // min(image.shape[:2]))
        factor = max(1, min(factor, ENLARGED_SIDE // max(image.shape[:2])))
        enlarged = image.repeat(factor, axis=0).repeat(factor, axis=1)
        boxes = sample.boxes.numpy() * factor
        drawn.append(draw_annotations(enlarged, boxes, sample.labels.numpy(), class_names))
    return drawn


def draw_split(path: Path, annotations: Annotations, table: DetectionTable, *, limit: int) -> None:
    """Draw the first pictures of a split with annotated boxes and detections that score at least 0.5.

    Args:
        path: The picture file to write.
        annotations: The split.
        table: Its detections.
        limit: Number of pictures.
    """
    images = []
    without_names = [""] * len(annotations.class_names)
    for index in range(min(limit, len(annotations))):
        image, factor = _shrunk(load_image(annotations, index))
        objects = annotations.objects(index)
        boxes, labels = annotations.boxes[objects] * factor, annotations.labels[objects]
        image = draw_annotations(image, boxes, labels, without_names)
        rows = np.flatnonzero((table.images == index) & (table.scores >= DRAWN_SCORE))
        found = table.boxes[rows] * factor
        images.append(
            draw_detections(image, found, table.labels[rows], table.scores[rows], annotations.class_names)
        )
    if images:
        write_sheet(path, images, COLUMNS)


def _shrunk(image: np.ndarray) -> tuple[np.ndarray, float]:
    """The picture with a longer side of at most `LARGEST_SIDE`, and the factor."""
    factor = min(1.0, LARGEST_SIDE / max(image.shape[:2]))
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    return resize_image(image, height, width), factor
