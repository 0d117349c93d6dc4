"""Ensembles: several networks propose, all of them score the union of the proposals, and the answers are averaged.

He et al. 2015, Appendix B: proposals and their classification are both an ensemble's. Averaged are the class scores
(after softmax) and the box offsets: all networks start from the same boxes, so that the mean of their offsets is a box
between theirs.

The networks may differ in depth, preprocessing and picture size; their classes must have the same names, in any order.

R regions, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detres.detection.roi_head import RegionOutputs
from detres.errors import WeightsError, listed


def union_of_boxes(boxes: Sequence[Tensor]) -> Tensor:
    """All boxes (R, 4) of one picture, in order; what equals an earlier one to the last bit is left out.

    Args:
        boxes: Of each network (R_i, 4), in pixels of the same picture.
    """
    joined = boxes[0]
    for more in boxes[1:]:
        known = (more[:, None] == joined[None]).all(dim=-1).any(dim=1)  # (R_i,)
        joined = torch.cat((joined, more[~known]))
    return joined


def mean_outputs(outputs: Sequence[RegionOutputs]) -> RegionOutputs:
    """The mean of scores and of offsets over what several networks (or views) say of the same regions."""
    if len(outputs) == 1:
        return outputs[0]
    return RegionOutputs(
        torch.stack([each.scores for each in outputs]).mean(dim=0),
        torch.stack([each.offsets for each in outputs]).mean(dim=0),
    )


def class_order(class_names: Sequence[str], others: Sequence[str], where: str, other: str) -> tuple[int, ...]:
    """For each of `class_names` its place in `others`, another network's names.

    Raises:
        WeightsError: The names are not the same; both sides are named.
    """
    missing = [name for name in class_names if name not in others]
    unknown = [name for name in others if name not in class_names]
    if missing or unknown:
        faults = [f"lacks {listed(missing, 5)}"] * bool(missing) + [f"adds {listed(unknown, 5)}"] * bool(
            unknown
        )
        raise WeightsError(
            f"{other}: its {len(others)} classes are not the {len(class_names)} of {where}: it {' and '.join(faults)};"
            " an ensemble needs networks of the same class names"
        )
    return tuple(list(others).index(name) for name in class_names)
