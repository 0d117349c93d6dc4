"""How well anchors fit the boxes of a data set: a 32 px object cannot match an anchor of 128 x 128 px.

Ren et al. 2015, §3.1.1-3.1.2. M boxes, A anchors a position.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from detres.boxes.geometry import box_iou
from detres.data.records import Annotations
from detres.data.transforms import resized_size


def best_anchor_overlaps(
    annotations: Annotations, short_side: int, long_side: int, cell: Tensor, stride: int
) -> Tensor:
    """(M,) IoU of every object with the anchor that fits it best, images resized as for the network.

    Args:
        annotations: The split.
        short_side: Shorter side of the resized images.
        long_side: Limit of their longer side.
        cell: (A, 4) from `cell_anchors`.
        stride: Pixels from one anchor position to the next.
    """
    factors = [
        resized_size(int(height), int(width), short_side, long_side)[2] for height, width in annotations.sizes
    ]
    counts = np.diff(annotations.offsets)
    scale = torch.from_numpy(np.repeat(np.array(factors, dtype=np.float32), counts))
    boxes = torch.from_numpy(annotations.boxes) * scale[:, None]
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    offset = torch.remainder(centers + stride / 2, stride) - stride / 2  # to the nearest position
    centered = boxes - (centers - offset).repeat(1, 2)
    around = torch.tensor([(x, y, x, y) for x in (-stride, 0, stride) for y in (-stride, 0, stride)])
    anchors = (cell[:, None] + around).view(-1, 4)
    chunks = [box_iou(part, anchors).max(dim=1).values for part in centered.split(4096)]
    return torch.cat(chunks) if chunks else torch.zeros(0)


def coverage_line(overlaps: Tensor, fg_iou_thresh: float) -> str:
    """One line on how many objects the anchors can match, for the start of a run."""
    if len(overlaps) == 0:
        return "anchors: no objects to match"
    share = (overlaps >= fg_iou_thresh).float().mean().item()
    half = (overlaps >= 0.5).float().mean().item()
    line = f"anchors reach IoU {fg_iou_thresh:g} with {share:.0%} of the objects and 0.5 with {half:.0%}"
    if half < 0.9:
        line += "; set rpn.anchor_sizes nearer to the objects' sides (in pixels of the resized image)"
    return line
