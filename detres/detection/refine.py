"""Iterative box refinement: the predicted boxes are pooled and scored again, and both predictions are kept.

He et al. 2015, Appendix B, Box refinement (in part after Gidaris and Komodakis 2015): a feature is pooled from each
predicted box and gives a new score and a new box. These 300 predictions are combined with the 300 before; suppression
(IoU 0.3) of the union and box voting follow (`postprocess`). Only the head runs again, on the maps of the first pass.

R regions, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from detres.detection.postprocess import DecodedRegions


def refine_boxes(predictions: DecodedRegions, predict: Callable[[Tensor], DecodedRegions]) -> DecodedRegions:
    """2 R predictions: the first, then those of the boxes of the best class.

    Args:
        predictions: For the R proposals.
        predict: From boxes (R, 4) to their predictions; it is called once.
    """
    second = predict(best_class_boxes(predictions))
    return DecodedRegions(
        torch.cat((predictions.scores, second.scores)), torch.cat((predictions.boxes, second.boxes))
    )


def best_class_boxes(predictions: DecodedRegions) -> Tensor:
    """The box of each region's best-scoring class, (R, 4).

    A region has K boxes; one of them is pooled again, so that R regions stay R.
    """
    best = predictions.scores.argmax(dim=1)  # (R,)
    return predictions.boxes[torch.arange(len(best), device=best.device), best]
