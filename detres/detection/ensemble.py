"""Ensembles: several networks propose, all of them score the union of the proposals, and the answers are averaged.

He et al. 2015, Appendix B: both the proposals and their classification come from the ensemble. The means are taken of
class scores (after softmax) and of box offsets: all networks start from the same boxes, so that the mean of their
offsets is a box between theirs.

The networks may differ in depth, preprocessing and image size; their classes must have the same names, in any order.

R regions, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detres.detection.roi_head import RegionPredictions


def union_of_boxes(boxes: Sequence[Tensor]) -> Tensor:
    """All boxes (R, 4) of one image, in order; a box that equals an earlier one to the last bit is left out.

    Args:
        boxes: Of each network (R_i, 4), in pixels of the same image.
    """
    union = boxes[0]
    for more in boxes[1:]:
        known = (more[:, None] == union[None]).all(dim=-1).any(dim=1)  # (R_i,)
        union = torch.cat((union, more[~known]))
    return union


def mean_predictions(predictions: Sequence[RegionPredictions]) -> RegionPredictions:
    """The mean of scores and of offsets that several networks (or an image and its mirror image) give to regions."""
    if len(predictions) == 1:
        return predictions[0]
    return RegionPredictions(
        torch.stack([each.scores for each in predictions]).mean(dim=0),
        torch.stack([each.offsets for each in predictions]).mean(dim=0),
    )
