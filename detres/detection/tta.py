"""Multi-scale testing of the Fast R-CNN step: each region is pooled from two adjacent maps of an image pyramid.

He et al. 2015, Appendix B, Multi-scale testing: shorter sides 200, 400, 600, 800, 1000; two adjacent scales for each
region, chosen as SPPnet chooses one (He et al. 2014: where the region's area comes nearest to 224 x 224), pooling and
the layers behind it on both, merged by maxout ("Networks on conv feature maps", Ren et al. 2015). Proposals come from
the network's own size alone.

S scales, smallest first; N images; R regions; D channels of a region's feature. Boxes are in pixels of the image at the
network's own size; a factor is (vertical, horizontal) from there to a scale's input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from detres.boxes.geometry import box_area, scale_boxes
from detres.data.transforms import resized_size

LONGEST_SIDE = (
    2000  # of an image of the pyramid (Girshick 2015): at 1000 the scales 800 and 1000 would collapse
)
BEST_AREA = 224.0**2  # of a region: what the network was pre-trained on

# From maps and boxes of each image, boxes in pixels of the maps' input, to features (R, D).
RegionFeatures = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]


def pyramid_sizes(
    height: int, width: int, scales: Sequence[int] | None, short_side: int, long_side: int
) -> dict[int, tuple[int, int]]:
    """Height and width to which a picture is resized, by shorter side: the network's own and all of `scales`.

    Args:
        height: Of the stored picture.
        width: Of the stored picture.
        scales: Shorter sides of the pyramid; None, or the network's own alone, is the plain test.
        short_side: The network's own shorter side.
        long_side: Limit of the longer side in the plain test; a pyramid's is `LONGEST_SIDE` (or this, if larger).
    """
    plain = scales is None or tuple(scales) == (short_side,)
    limit = long_side if plain else max(long_side, LONGEST_SIDE)
    sides = sorted({short_side, *(scales or ())})
    return {side: resized_size(height, width, side, limit)[:2] for side in sides}


def adjacent_scales(areas: Tensor, area_factors: Sequence[float]) -> Tensor:
    """For each region the smaller of its two adjacent scales, (R,) int64 in 0..S-2.

    Of the pairs (k, k + 1) the one with the least |log(area f_k / 224^2)| + |log(area f_(k+1) / 224^2)|; of equals the
    smaller pair.

    Args:
        areas: (R,) of the boxes, square pixels at the network's own size; under 1 counts as 1.
        area_factors: S factors f from there to the area at each scale, S >= 2.
    """
    factors = torch.tensor(area_factors, dtype=torch.float64, device=areas.device)
    distances = (areas.double().clamp(min=1)[:, None] * factors / BEST_AREA).log().abs()  # (R, S)
    costs = distances[:, :-1] + distances[:, 1:]
    return costs.round(decimals=9).argmin(
        dim=1
    )  # rounded: halfway between scales is a tie whatever log's last digit


def pyramid_features(
    features: RegionFeatures,
    maps: Sequence[Sequence[Tensor]],
    factors: Sequence[Sequence[tuple[float, float]]],
    boxes: Sequence[Tensor],
) -> Tensor:
    """Features (R, D) of all images' regions in order: the element-wise maximum of those from two adjacent scales.

    With one scale they are the features from its maps.

    Args:
        features: The region head up to its sibling layers.
        maps: For each scale, of each image its map (1, C, h, w).
        factors: For each scale and image.
        boxes: For each image (R_i, 4).
    """
    if len(maps) == 1:
        return features(maps[0], _scaled(boxes, factors[0]))
    smaller = [
        adjacent_scales(box_area(of_image), [math.prod(of_scale[image]) for of_scale in factors])
        for image, of_image in enumerate(boxes)
    ]
    pair = torch.cat(smaller)  # (R,)
    merged: Tensor | None = None
    for scale, (maps_of_scale, factors_of_scale) in enumerate(zip(maps, factors, strict=True)):
        chosen = [(of_image == scale) | (of_image + 1 == scale) for of_image in smaller]
        regions = [of_image[rows] for of_image, rows in zip(boxes, chosen, strict=True)]
        at_scale = features(maps_of_scale, _scaled(regions, factors_of_scale))
        if merged is None:
            merged = at_scale.new_full((len(pair), at_scale.shape[1]), -math.inf)
        rows = torch.cat(chosen)
        merged[rows] = torch.maximum(merged[rows], at_scale)
    assert merged is not None
    return merged


def _scaled(boxes: Sequence[Tensor], factors: Sequence[tuple[float, float]]) -> list[Tensor]:
    return [scale_boxes(of_image, factor) for of_image, factor in zip(boxes, factors, strict=True)]
