"""Non-maximum suppression: keep a box unless a better kept one overlaps it by more than the threshold."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Indices of the boxes kept, best score first (ties: lower index first).

    Args:
        boxes: (N, 4) float32 xyxy.
        scores: (N,) float.
        threshold: A box is dropped where its IoU with a better kept one is above this.

    Returns:
        (M,) int64.
    """
    return torchvision.ops.nms(boxes, scores, threshold)


def nms_per_class(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """`nms` where boxes of different classes do not suppress each other.

    Classes are moved apart by more than the largest coordinate, in float64 so that no overlap changes.

    Args:
        boxes: (N, 4) float32 xyxy.
        scores: (N,) float.
        labels: (N,) int64 class of each box.
        threshold: As in `nms`.
    """
    if boxes.numel() == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    apart = boxes.double() - boxes.min()
    apart = apart + (labels.double() * (apart.max() + 1))[:, None]
    return nms(apart, scores.double(), threshold)
