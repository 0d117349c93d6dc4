"""Testing with the mirror image beside the picture; not in the paper.

Both images go through the trunk together. Their proposals are joined, every region is scored in both, and scores and
box offsets are averaged: region by region, as an ensemble of two networks would be. (Joining both images' detections
before suppression would instead keep the surer of two answers, and its score; the average is what makes it surer.)

N pictures; images are the N pictures, then their N mirror images. R regions, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from detres.boxes.coding import flip_deltas
from detres.boxes.geometry import flip_boxes
from detres.detection.ensemble import mean_outputs, union_of_boxes
from detres.detection.roi_head import RegionOutputs


def with_mirror_images(images: Sequence[Tensor]) -> list[Tensor]:
    """Images (3, H, W), then the mirror image of each."""
    return [*images, *(image.flip(-1) for image in images)]


def with_mirrored(boxes: Sequence[Tensor], widths: Sequence[int]) -> list[Tensor]:
    """Boxes (R, 4) of N pictures, then the same regions in their mirror images; widths are the pictures'."""
    return [*boxes, *(flip_boxes(b, width) for b, width in zip(boxes, widths, strict=True))]


def join_mirrored_boxes(boxes: Sequence[Tensor], widths: Sequence[int]) -> list[Tensor]:
    """For each picture its boxes with those of its mirror image, mirrored back."""
    images = len(widths)
    return [
        union_of_boxes([straight, flip_boxes(mirrored, width)])
        for straight, mirrored, width in zip(boxes[:images], boxes[images:], widths, strict=True)
    ]


def join_mirrored_outputs(outputs: Sequence[RegionOutputs]) -> list[RegionOutputs]:
    """For each picture the mean of its regions' outputs in it and in its mirror image."""
    images = len(outputs) // 2
    return [
        mean_outputs([straight, RegionOutputs(mirrored.scores, flip_deltas(mirrored.offsets))])
        for straight, mirrored in zip(outputs[:images], outputs[images:], strict=True)
    ]
