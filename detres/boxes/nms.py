"""Non-maximum suppression: keep a box unless a better kept one overlaps it by more than the threshold."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor

FEW = 1024  # boxes up to which torchvision's operator is as quick
BLOCK = 128  # boxes that are settled at once
WINDOW = 1024  # boxes that are freed of the overlapped before more are looked at


def nms(boxes: Tensor, scores: Tensor, threshold: float, limit: int | None = None) -> Tensor:
    """Indices of the boxes kept, best score first (ties: lower index first).

    Many boxes on the CPU go through in blocks, best first, and the work ends as soon as `limit` are kept: the rest
    cannot change them. Few boxes, and other devices: torchvision's operator, cut at the limit.

    Args:
        boxes: (N, 4) float32 xyxy.
        scores: (N,) float.
        threshold: A box is dropped where its IoU with a better kept one is above this.
        limit: At most this many are kept, the best; 1 at least.

    Returns:
        (M,) int64, M <= limit.
    """
    assert limit is None or limit >= 1
    if boxes.device.type != "cpu" or len(boxes) <= FEW:
        return torchvision.ops.nms(boxes, scores, threshold)[:limit]
    order = scores.argsort(descending=True, stable=True)
    kept = _suppress_in_blocks(boxes[order], threshold, len(boxes) if limit is None else limit)
    return order[kept]


def _suppress_in_blocks(boxes: Tensor, threshold: float, limit: int) -> Tensor:
    """Positions of the kept among `boxes` (N, 4), which are in order, best first."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    bound = _largest_up_to(threshold, boxes.dtype)

    def free_of(better: Tensor, worse: Tensor) -> Tensor:
        over = _overlaps(boxes[better], areas[better], boxes[worse], areas[worse], bound)
        return worse[~over.any(dim=0)]

    kept: list[Tensor] = []
    count = 0
    for window in torch.arange(len(boxes)).split(WINDOW):
        for better in kept:
            window = free_of(better, window)
        while len(window) and count < limit:
            block, window = window[:BLOCK], window[BLOCK:]
            over = _overlaps(boxes[block], areas[block], boxes[block], areas[block], bound)
            block = block[_greedy(over)]
            window = free_of(block, window)
            kept.append(block)
            count += len(block)
        if count >= limit:
            break
    return torch.cat(kept)[:limit]


def _largest_up_to(threshold: float, dtype: torch.dtype) -> Tensor:
    """The largest number of `dtype` not above `threshold`: an IoU is above one where it is above the other."""
    rounded = torch.tensor(threshold, dtype=dtype)
    return torch.nextafter(rounded, torch.zeros_like(rounded)) if rounded.item() > threshold else rounded


def _greedy(over: Tensor) -> Tensor:
    """Which boxes the greedy choice keeps where box i, if kept, drops the boxes j > i with over[i, j].

    keep[j] = not any(keep[i] and over[i, j] for i < j), repeated from all kept until nothing changes: after t rounds
    the first t boxes are final, and whole chains of suppression are rarely longer than a few boxes.

    Args:
        over: (n, n) bool.

    Returns:
        (n,) bool.
    """
    drops = over.triu(diagonal=1).float()
    keep = torch.ones(len(over))
    while True:
        again = (keep @ drops == 0).float()
        if torch.equal(again, keep):
            return keep.bool()
        keep = again


def _overlaps(boxes: Tensor, areas: Tensor, others: Tensor, areas_of_others: Tensor, bound: Tensor) -> Tensor:
    """Where the IoU of boxes (n, 4) and others (m, 4) is above the bound: (n, m) bool."""
    width = torch.minimum(boxes[:, None, 2], others[:, 2]).sub_(
        torch.maximum(boxes[:, None, 0], others[:, 0])
    )
    height = torch.minimum(boxes[:, None, 3], others[:, 3]).sub_(
        torch.maximum(boxes[:, None, 1], others[:, 1])
    )
    shared = width.clamp_(min=0).mul_(height.clamp_(min=0))
    return shared / (areas[:, None] + areas_of_others - shared) > bound


def nms_per_class(
    boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, limit: int | None = None
) -> Tensor:
    """`nms` where boxes of different classes do not suppress each other.

    Classes are moved apart by more than the largest coordinate, in float64 so that no overlap changes.

    Args:
        boxes: (N, 4) float32 xyxy.
        scores: (N,) float.
        labels: (N,) int64 class of each box.
        threshold: As in `nms`.
        limit: As in `nms`, over all classes together.
    """
    if boxes.numel() == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    apart = boxes.double() - boxes.min()
    apart = apart + (labels.double() * (apart.max() + 1))[:, None]
    return nms(apart, scores.double(), threshold, limit)
