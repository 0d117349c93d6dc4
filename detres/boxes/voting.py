"""Box voting: each box that NMS kept moves to the mean of the boxes around it, weighted by their scores.

Gidaris and Komodakis 2015 ("Object detection via a multi-region and semantic segmentation-aware CNN model"), the last
step of their localization scheme; He et al. 2015, Appendix B, Box refinement.

M kept boxes, N voters (all boxes before NMS, which include the kept ones). Boxes are xyxy of one image.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# because torch leaves Tensor.unique untyped.

from __future__ import annotations

import torch
from torch import Tensor

from detres.boxes.geometry import box_iou


def vote_boxes(
    boxes: Tensor,
    labels: Tensor,
    voters: Tensor,
    voter_scores: Tensor,
    voter_labels: Tensor,
    iou_thresh: float = 0.5,
) -> Tensor:
    """Move each box to the weighted mean of the voters of its class:

        voted = box + sum_j w_j (voter_j - box) / sum_j w_j,   w_j = max(0, score_j),

    over the voters j of the box's class with IoU(box, voter_j) > `iou_thresh`. It is written so that voters equal to
    the box leave it unchanged to the last bit. A box without voters stays.

    Args:
        boxes: (M, 4) kept boxes.
        labels: (M,) int64, their classes.
        voters: (N, 4), same dtype.
        voter_scores: (N,).
        voter_labels: (N,) int64.
        iou_thresh: Voters must have an IoU with the box above this (0.5 in Gidaris and Komodakis 2015).

    Returns:
        (M, 4).
    """
    voted = boxes.clone()
    for label in labels.unique():
        rows = torch.nonzero(labels == label)[:, 0]
        voter_rows = torch.nonzero(voter_labels == label)[:, 0]
        kept, around = boxes[rows], voters[voter_rows]
        weights = (box_iou(kept, around) > iou_thresh) * voter_scores[voter_rows].clamp(min=0)  # (m, n)
        moves = (weights[:, :, None] * (around[None] - kept[:, None])).sum(dim=1)  # (m, 4)
        total = weights.sum(dim=1, keepdim=True)
        voted[rows] = kept + moves / torch.where(total > 0, total, torch.ones_like(total))
    return voted
