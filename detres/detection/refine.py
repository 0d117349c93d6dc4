"""Iterative box refinement: the regressed boxes are pooled and scored again, and join the first.

He et al. 2015, Appendix B, Box refinement (in part after Gidaris and Komodakis 2015): a feature is pooled from each
regressed box and gives a new score and a new regressed box; these 300 predictions are combined with the 300 before.
What follows is as ever: suppression (IoU 0.3) of the union, and box voting (`boxes.voting`) where it is on. Only the
region head runs again: the maps are those of the first pass.

R regions, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from detres.detection.roi_head import ScoredRegions

# From each picture's boxes (R, 4) to their scores and regressed boxes; pixels of the same input.
ScoreRegions = Callable[[list[Tensor]], list[ScoredRegions]]


def refine_boxes(first: Sequence[ScoredRegions], score: ScoreRegions) -> list[ScoredRegions]:
    """For each picture 2 R predictions: the first, then those of the regions' regressed boxes.

    Args:
        first: For each picture what its R proposals gave.
        score: The region head on given boxes; it is called once.
    """
    second = score([best_class_boxes(of_image) for of_image in first])
    return [
        ScoredRegions(torch.cat((before.scores, after.scores)), torch.cat((before.boxes, after.boxes)))
        for before, after in zip(first, second, strict=True)
    ]


def best_class_boxes(regions: ScoredRegions) -> Tensor:
    """Of each region the box regressed for its best-scoring object class, (R, 4).

    A region has K regressed boxes; one of them is pooled again, so that R regions stay R.
    """
    best = regions.scores.argmax(dim=1)  # (R,)
    return regions.boxes[torch.arange(len(best), device=best.device), best]
