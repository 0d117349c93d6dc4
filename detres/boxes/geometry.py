"""Areas, overlaps, clipping, flipping and scaling of boxes.

`boxes` are (N, 4) float xyxy in continuous pixel coordinates: width = x2 - x1, the image spans [0, W] x [0, H].
"""

from __future__ import annotations

import torch
from torch import Tensor


def box_area(boxes: Tensor) -> Tensor:
    """(N,) areas in square pixels of (N, 4) boxes."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """(N, M) intersection over union of every box with every other; 0 where both are empty.

    Args:
        boxes: (N, 4) xyxy.
        others: (M, 4) xyxy, same dtype.
    """
    top_left = torch.maximum(boxes[:, None, :2], others[None, :, :2])  # (N, M, 2)
    bottom_right = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])  # (N, M, 2)
    sides = (bottom_right - top_left).clamp_(min=0)
    intersection = sides[..., 0] * sides[..., 1]  # (N, M)
    union = box_area(boxes)[:, None] + box_area(others)[None, :] - intersection
    return torch.where(union > 0, intersection / union, torch.zeros_like(union))


def clip_boxes(boxes: Tensor, height: float, width: float) -> Tensor:
    """Boxes (..., 4) clipped to an image of `height` x `width` pixels."""
    x = boxes[..., 0::2].clamp(0, width)
    y = boxes[..., 1::2].clamp(0, height)
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), dim=-1)


def flip_boxes(boxes: Tensor, width: float) -> Tensor:
    """Boxes (..., 4) in the mirror image of an image `width` pixels wide: (W - x2, y1, W - x1, y2)."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack((width - x2, y1, width - x1, y2), dim=-1)


def scale_boxes(boxes: Tensor, scale: tuple[float, float]) -> Tensor:
    """Boxes (..., 4) of an image resized by `scale` = (vertical, horizontal) factors."""
    vertical, horizontal = scale
    return boxes * boxes.new_tensor((horizontal, vertical, horizontal, vertical))


def boxes_inside(boxes: Tensor, height: float, width: float) -> Tensor:
    """(N,) bool, True where a box (N, 4) lies inside the image."""
    return (boxes[:, 0] >= 0) & (boxes[:, 1] >= 0) & (boxes[:, 2] <= width) & (boxes[:, 3] <= height)


def boxes_at_least(boxes: Tensor, height: float, width: float) -> Tensor:
    """(N,) bool, True where a box (N, 4) is at least `height` x `width` pixels."""
    return (boxes[:, 2] - boxes[:, 0] >= width) & (boxes[:, 3] - boxes[:, 1] >= height)
