"""Non-maximum suppression: keep a box unless a better kept one overlaps it by more than the threshold."""

from __future__ import annotations

import torch
import torchvision  # pyright: ignore[reportMissingTypeStubs]  # torchvision has no stubs
from torch import Tensor

SMALL = 1024  # up to this many boxes torchvision's operator is as fast
BLOCK = 128  # boxes that are decided at once
WINDOW = 1024  # boxes that are compared with the kept boxes at once


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, limit: int | None = None) -> Tensor:
    """Indices of the boxes kept, best score first (ties: lower index first).

    Many boxes on the CPU are processed in blocks, best first. The work ends as soon as `limit` boxes are kept, because
    the rest cannot change them. For few boxes and on other devices it is torchvision's operator, cut at the limit.

    Args:
        boxes: (N, 4) float32 xyxy.
        scores: (N,) float.
        iou_threshold: A box is dropped if its IoU with a better kept one is above this.
        limit: Keep at most this many, the best; at least 1.

    Returns:
        (M,) int64, M <= limit.
    """
    assert limit is None or limit >= 1
    if boxes.device.type != "cpu" or len(boxes) <= SMALL:
        return torchvision.ops.nms(boxes, scores, iou_threshold)[:limit]
    order = scores.argsort(descending=True, stable=True)
    keep = _suppress_in_blocks(boxes[order], iou_threshold, len(boxes) if limit is None else limit)
    return order[keep]


def _suppress_in_blocks(boxes: Tensor, iou_threshold: float, limit: int) -> Tensor:
    """Positions of the kept boxes among `boxes` (N, 4), which are sorted, best first."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    bound = _round_down(iou_threshold, boxes.dtype)

    def drop_overlapping(better: Tensor, worse: Tensor) -> Tensor:
        over = _overlaps(boxes[better], areas[better], boxes[worse], areas[worse], bound)
        return worse[~over.any(dim=0)]

    kept: list[Tensor] = []
    count = 0
    for start in range(0, len(boxes), WINDOW):
        window = torch.arange(start, min(start + WINDOW, len(boxes)))
        for better in kept:
            window = drop_overlapping(better, window)
        while len(window) and count < limit:
            block, window = window[:BLOCK], window[BLOCK:]
            over = _overlaps(boxes[block], areas[block], boxes[block], areas[block], bound)
            block = block[_choose_greedily(over)]
            window = drop_overlapping(block, window)
            kept.append(block)
            count += len(block)
        if count >= limit:
            break
    return torch.cat(kept)[:limit]


def _round_down(threshold: float, dtype: torch.dtype) -> Tensor:
    """The largest number of `dtype` that is not above `threshold`; an IoU is above both or neither."""
    rounded = torch.tensor(threshold, dtype=dtype)
    return torch.nextafter(rounded, torch.zeros_like(rounded)) if rounded.item() > threshold else rounded


def _choose_greedily(over: Tensor) -> Tensor:
    """Which boxes the greedy choice keeps, if a kept box i drops the boxes j > i with over[i, j].

    Start with all boxes kept and repeat keep[j] = not any(keep[i] and over[i, j] for i < j) until nothing changes.
    After t rounds the first t boxes are final, and chains of suppression are rarely longer than a few boxes.

    Args:
        over: (n, n) bool.

    Returns:
        (n,) bool.
    """
    drops = over.triu(diagonal=1).float()
    keep = torch.ones(len(over))
    while True:
        new_keep = (keep @ drops == 0).float()
        if torch.equal(new_keep, keep):
            return keep.bool()
        keep = new_keep


def _overlaps(boxes: Tensor, areas: Tensor, others: Tensor, other_areas: Tensor, bound: Tensor) -> Tensor:
    """Where the IoU of boxes (n, 4) and others (m, 4) is above the bound: (n, m) bool."""
    width = torch.minimum(boxes[:, None, 2], others[:, 2]).sub_(
        torch.maximum(boxes[:, None, 0], others[:, 0])
    )
    height = torch.minimum(boxes[:, None, 3], others[:, 3]).sub_(
        torch.maximum(boxes[:, None, 1], others[:, 1])
    )
    intersection = width.clamp_(min=0).mul_(height.clamp_(min=0))
    return intersection / (areas[:, None] + other_areas - intersection) > bound


def nms_per_class(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, limit: int | None = None
) -> Tensor:
    """`nms` in which boxes of different classes do not suppress each other.

    Boxes of different classes are moved apart by more than the largest coordinate, in float64 so that no IoU changes.

    Args:
        boxes: (N, 4) float32 xyxy.
        scores: (N,) float.
        labels: (N,) int64 class of each box.
        iou_threshold: As in `nms`.
        limit: As in `nms`, over all classes together.
    """
    if boxes.numel() == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    shifted = boxes.double() - boxes.min()
    shifted = shifted + (labels.double() * (shifted.max() + 1))[:, None]
    return nms(shifted, scores.double(), iou_threshold, limit)
