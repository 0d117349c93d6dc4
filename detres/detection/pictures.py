"""Pictures that a training run draws unasked: the first batch as the network sees it, detections on validation pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detres.data.batching import DetectionSample, load_picture
from detres.data.drawing import contact_sheet, draw_annotations, draw_detections, write_image
from detres.data.records import Annotations, DetectionTable

COLUMNS = 4
DRAWN_SCORE = 0.5  # detections under this score are not drawn: they would hide the picture


def draw_batch(path: Path, samples: Sequence[DetectionSample], class_names: Sequence[str]) -> None:
    """Draw samples with their boxes, after resizing and augmentation.

    Args:
        path: The picture file to write.
        samples: The batch.
        class_names: K names.
    """
    pictures = [
        draw_annotations(
            sample.image.permute(1, 2, 0).numpy(), sample.boxes.numpy(), sample.labels.numpy(), class_names
        )
        for sample in samples
    ]
    write_image(path, contact_sheet(pictures, COLUMNS))


def draw_split(path: Path, annotations: Annotations, table: DetectionTable, *, limit: int) -> None:
    """Draw the first pictures of a split with annotated boxes (dashed) and detections that score at least 0.5.

    Args:
        path: The picture file to write.
        annotations: The split.
        table: Its detections.
        limit: Number of pictures.
    """
    pictures = []
    for index in range(min(limit, len(annotations))):
        objects = annotations.objects(index)
        image = draw_annotations(
            load_picture(annotations, index),
            annotations.boxes[objects],
            annotations.labels[objects],
            [""] * len(annotations.class_names),
        )
        rows = np.flatnonzero((table.images == index) & (table.scores >= DRAWN_SCORE))
        pictures.append(
            draw_detections(
                image, table.boxes[rows], table.labels[rows], table.scores[rows], annotations.class_names
            )
        )
    if pictures:
        write_image(path, contact_sheet(pictures, COLUMNS))
