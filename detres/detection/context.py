"""Global context: each region is classified with the whole image's feature beside its own.

He et al. 2015, Appendix B, Global context: the box of the entire image is pooled from the shared map like any region
(pyramid pooling of a single level) and goes through the layers behind the pooling; that feature is concatenated with
each region's, and the sibling layers take both. It is trained end to end, and computed once an image.

N images, R regions of all of them in order, D channels of a feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from detres.errors import WeightsError

SIBLING = "region_head.class_logits.weight"  # (K + 1, D), with context (K + 1, 2 D)


def whole_image_boxes(sizes: Sequence[tuple[int, int]], like: Tensor) -> list[Tensor]:
    """For each image of height and width `sizes` its whole box (1, 4), of the dtype and device of `like`."""
    return [like.new_tensor([[0, 0, width, height]]) for height, width in sizes]


def concat_global_context(features: Tensor, context: Tensor, counts: Sequence[int]) -> Tensor:
    """Each region's feature with that of its image behind it.

    Args:
        features: (R, D).
        context: (N, D), of the whole images.
        counts: N numbers of regions, R in all.

    Returns:
        (R, 2 D); its gradient reaches both.
    """
    repeats = torch.tensor(counts, device=context.device)
    of_region = context.repeat_interleave(
        repeats, dim=0, output_size=sum(counts)
    )  # (R, D); asks no device for R
    return torch.cat((features, of_region), dim=1)


def check_context(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], where: str) -> None:
    """Refuse a detector's weights with global context in one without it, and the other way round.

    Args:
        tensors: Weights of a detector by name; without the class layer nothing is checked.
        own: The network's `state_dict()`.
        where: The file, for the message.

    Raises:
        WeightsError: One has it and the other has not.
    """
    if SIBLING not in tensors or SIBLING not in own:
        return
    given, wanted = tensors[SIBLING].shape[-1], own[SIBLING].shape[-1]
    if given == 2 * wanted:
        raise WeightsError(
            f"{where}: weights with global context ({given} channels before the class layer), the model has none"
            f" ({wanted}): set model.global_context: true, or choose weights without it"
        )
    if wanted == 2 * given:
        raise WeightsError(
            f"{where}: weights without global context ({given} channels before the class layer), the model has it"
            f" ({wanted}): set model.global_context: false, or choose weights with it"
        )
