"""Global context: each region is classified with the whole image's feature beside its own.

He et al. 2015, Appendix B, Global context: the box of the entire image is pooled from the shared map like any region
(pyramid pooling with a single level) and goes through the layers behind the pooling. That feature is concatenated with
each region's, and the class and box layers take both. It is trained end to end and computed once per image.

N images, R regions of all of them in order, D channels of a feature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from detres.errors import WeightsError

CLASS_LAYER = "roi_head.box_predictor.cls_score.weight"  # (K + 1, D), with global context (K + 1, 2 D)


def pool_global_context(
    region_features: Callable[[Sequence[Tensor]], Tensor], sizes: Sequence[tuple[int, int]], like: Tensor
) -> Tensor:
    """The features (N, D) of whole images.

    Args:
        region_features: From each image's boxes (R_i, 4), in pixels of its input, to their features (R, D).
        sizes: Height and width of each image's input.
        like: A tensor of the dtype and device that boxes have.
    """
    return region_features([like.new_tensor([[0, 0, width, height]]) for height, width in sizes])


def concat_global_context(features: Tensor, context: Tensor, counts: Sequence[int]) -> Tensor:
    """Each region's feature with that of its image behind it.

    Args:
        features: (R, D).
        context: (N, D), from `pool_global_context`.
        counts: N numbers of regions, R in all.

    Returns:
        (R, 2 D); its gradient reaches both.
    """
    repeats = torch.tensor(counts, device=context.device)
    # With output_size no device is asked for R.
    per_region = context.repeat_interleave(repeats, dim=0, output_size=sum(counts))  # (R, D)
    return torch.cat((features, per_region), dim=1)


def check_context(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights with global context in a detector without it, and the other way round.

    Args:
        tensors: Weights of a detector by name; without the class layer nothing is checked.
        own: The network's `state_dict()`.
        where: The file, for the message.

    Raises:
        WeightsError: One has global context and the other has not.
    """
    if CLASS_LAYER not in tensors or CLASS_LAYER not in own:
        return
    given, needed = tensors[CLASS_LAYER].shape[-1], own[CLASS_LAYER].shape[-1]
    if given == 2 * needed:
        raise WeightsError(
            f"{where}: weights with global context ({given} channels before the class layer), the model has none"
            f" ({needed}): set model.global_context: true, or choose weights without it"
        )
    if needed == 2 * given:
        raise WeightsError(
            f"{where}: weights without global context ({given} channels before the class layer), the model has it"
            f" ({needed}): set model.global_context: false, or choose weights with it"
        )
