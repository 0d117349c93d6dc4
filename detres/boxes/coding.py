"""Boxes encoded as offsets to reference boxes (anchors, proposals), and decoded (Girshick et al. 2014, appendix C).

With center (x, y) and sides (w, h) of the box, (xr, yr, wr, hr) of its reference and target_stds s:
    deltas = ((x - xr) / wr / s0, (y - yr) / hr / s1, log(w / wr) / s2, log(h / hr) / s3)
The identity: decode_boxes(encode_boxes(boxes, references), references) == boxes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# A box is at most 1000 / 16 times its reference, so that an untrained network does not overflow exp (as in Detectron).
MAX_LOG_RATIO = math.log(1000.0 / 16)
TargetStds = tuple[float, float, float, float]
UNIT = (1.0, 1.0, 1.0, 1.0)


def encode_boxes(boxes: Tensor, references: Tensor, target_stds: TargetStds = UNIT) -> Tensor:
    """Deltas (N, 4) that turn `references` (N, 4) into `boxes` (N, 4); sides must be positive.

    Args:
        boxes: (N, 4) xyxy.
        references: (N, 4) xyxy.
        target_stds: The four offsets are divided by these standard deviations (0.1, 0.1, 0.2, 0.2 in Fast R-CNN).
    """
    centers, sides = _centers_and_sides(boxes)
    reference_centers, reference_sides = _centers_and_sides(references)
    offsets = torch.cat(
        ((centers - reference_centers) / reference_sides, (sides / reference_sides).log()), dim=-1
    )
    return offsets / offsets.new_tensor(target_stds)


def decode_boxes(deltas: Tensor, references: Tensor, target_stds: TargetStds = UNIT) -> Tensor:
    """Apply `deltas` to `references`; the inverse of `encode_boxes`.

    Args:
        deltas: (N, 4), or (N, K, 4) for K classes.
        references: (N, 4) xyxy.
        target_stds: As in `encode_boxes`.

    Returns:
        Boxes of the shape of `deltas`, not clipped to the image.
    """
    offsets = deltas * deltas.new_tensor(target_stds)
    centers, sides = _centers_and_sides(references)
    if deltas.dim() == 3:
        centers, sides = centers[:, None], sides[:, None]  # (N, 1, 2)
    new_centers = centers + offsets[..., :2] * sides
    half_sides = sides * offsets[..., 2:].clamp(max=MAX_LOG_RATIO).exp() / 2
    return torch.cat((new_centers - half_sides, new_centers + half_sides), dim=-1)


def flip_deltas(deltas: Tensor) -> Tensor:
    """Deltas (..., 4) between the mirror images of the boxes and their references: (-dx, dy, dw, dh).

    The identity: decode_boxes(flip_deltas(deltas), flip_boxes(references)) ==
    flip_boxes(decode_boxes(deltas, references)).
    """
    return deltas * deltas.new_tensor((-1.0, 1.0, 1.0, 1.0))


def _centers_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Centers (..., 2) and sides (..., 2) as (x, y) and (width, height)."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + sides / 2, sides
