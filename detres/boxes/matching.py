"""Which object each reference box stands for: the one rule of RPN and Fast R-CNN (Ren et al. 2015, §3.1.2).

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
    keep_best: bool = False,
) -> tuple[Tensor, Tensor]:
    """Positive, negative or ignored, and the object matched, from the overlaps.

    A reference is positive where its best overlap is >= `fg_iou_thresh`, negative where it lies in
    [`bg_iou_thresh_lo`, `bg_iou_thresh`), else ignored. Example: with 0.7 and 0.3, overlaps (0.75, 0.5, 0.1) give
    (positive, ignored, negative); if 0.5 is the object's best overlap, `keep_best` makes it positive too.

    Args:
        iou: (N, G) overlaps; G may be 0: a picture without objects has negatives only, whatever `bg_iou_thresh_lo` is.
        fg_iou_thresh: From here on positive.
        bg_iou_thresh: Below here negative.
        bg_iou_thresh_lo: Below here ignored (Fast R-CNN's 0.1, Girshick 2015).
        keep_best: Each object's best references are positive too, ties included.

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
    if keep_best and references:
        best_of_object = iou.max(dim=0).values  # (G,)
        is_best = (iou == best_of_object) & (best_of_object > 0)  # (N, G)
        matches[is_best.any(dim=1)] = POSITIVE
    return matches, best_object
