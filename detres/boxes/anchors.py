"""Anchors: the reference boxes at every position of a feature map (Ren et al. 2015, §3.1.1).

A is the number of anchors at a position. Their centers are at (stride * column, stride * row) of the input image, as in
torchvision and detectron2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
    """The anchors of one position, centered on (0, 0): all sizes for each aspect ratio.

    Args:
        sizes: Square roots of the areas, in pixels of the network's input.
        aspect_ratios: Height divided by width.

    Returns:
        (A, 4) float32 xyxy, A = len(aspect_ratios) * len(sizes); each has the area size^2 exactly (no rounding).
    """
    scale = torch.tensor(sizes, dtype=torch.float64)
    ratio = torch.tensor(aspect_ratios, dtype=torch.float64)
    heights = (ratio.sqrt()[:, None] * scale).flatten()
    widths = (scale / ratio.sqrt()[:, None]).flatten()
    return (torch.stack((-widths, -heights, widths, heights), dim=1) / 2).float()


def grid_anchors(cell: Tensor, height: int, width: int, stride: int) -> Tensor:
    """The anchors of a whole map, in the order of the RPN's outputs: row, column, anchor.

    Geometry stays float32 under autocast because bfloat16 would round the centers to 4 px at 800 px.

    Args:
        cell: (A, 4) from `cell_anchors`, on the device of the result.
        height: Rows of the map.
        width: Columns of the map.
        stride: Input pixels from one position to the next (16 on conv4_x).

    Returns:
        (height * width * A, 4) float32 xyxy in pixels of the network's input.
    """
    rows = torch.arange(height, device=cell.device, dtype=torch.float32) * stride
    columns = torch.arange(width, device=cell.device, dtype=torch.float32) * stride
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    shifts = torch.stack((x, y, x, y), dim=-1).view(-1, 1, 4)  # (height * width, 1, 4)
    return (shifts + cell).view(-1, 4)
