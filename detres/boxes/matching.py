"""Matching of reference boxes to objects, the same for RPN and Fast R-CNN (Ren et al. 2015, §3.1.2).

N references (anchors or proposals), G objects.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEGATIVE = 0
POSITIVE = 1
IGNORED = -1


def match_boxes(
    iou: Tensor,
    *,
    fg_iou_thresh: float,
    bg_iou_thresh: float,
    bg_iou_thresh_lo: float = 0.0,
    allow_low_quality_matches: bool = False,
) -> tuple[Tensor, Tensor]:
    """Label each reference positive, negative or ignored, and give its best object.

    A reference is positive if its best IoU is at least `fg_iou_thresh`, negative if its best IoU is in
    [`bg_iou_thresh_lo`, `bg_iou_thresh`), and ignored otherwise. Example: with thresholds 0.7 and 0.3, best IoUs of
    (0.75, 0.5, 0.1) give (positive, ignored, negative). If 0.5 is the object's best IoU with any reference,
    `allow_low_quality_matches` makes that reference positive too.

    Args:
        iou: (N, G) overlaps; with G = 0 every reference is negative, whatever `bg_iou_thresh_lo` is.
        fg_iou_thresh: References with this IoU or more are positive.
        bg_iou_thresh: References below this IoU are negative.
        bg_iou_thresh_lo: References below this IoU are ignored (0.1 in Fast R-CNN, Girshick 2015).
        allow_low_quality_matches: Also make each object's best references positive, ties included.

    Returns:
        `matches` (N,) int64, NEGATIVE 0, POSITIVE 1 or IGNORED -1; `objects` (N,) int64, the best object's index
        (0 where there are no objects).
    """
    references, objects = iou.shape
    if objects == 0:
        matches = torch.full((references,), NEGATIVE, dtype=torch.int64, device=iou.device)
        return matches, torch.zeros_like(matches)
    best_iou, best_object = iou.max(dim=1)
    matches = torch.full_like(best_object, IGNORED)
    matches[(best_iou < bg_iou_thresh) & (best_iou >= bg_iou_thresh_lo)] = NEGATIVE
    matches[best_iou >= fg_iou_thresh] = POSITIVE
    if allow_low_quality_matches and references:
        best_of_object = iou.max(dim=0).values  # (G,)
        is_best = (iou == best_of_object) & (best_of_object > 0)  # (N, G)
        matches[is_best.any(dim=1)] = POSITIVE
    return matches, best_object
