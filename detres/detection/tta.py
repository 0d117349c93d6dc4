"""What a test adds around the network: an image pyramid merged by maxout, and the mirror image.

He et al. 2015, Appendix B, Multi-scale testing: shorter sides 200, 400, 600, 800, 1000. For each region two adjacent
scales are chosen as SPPnet chooses one (He et al. 2014: where the region's area comes nearest to 224 x 224). Pooling
and the layers behind it run on both, and maxout merges them ("Networks on conv feature maps", Ren et al. 2015).
Proposals come from the network's own size alone.

The mirror image is not in the paper. Both images go through the trunk together. Their proposals are united, every
region is scored in both, and scores and box offsets are averaged, as in an ensemble of two networks. (Uniting both
images' detections before suppression would keep the higher of two scores instead of their mean.)

S scales, smallest first; V views of one image: the image itself, then its mirror image where there is one; R regions;
D channels of a region's feature. Boxes are in pixels of the image at the network's own size; a factor is
(vertical, horizontal) from there to a scale's input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from detres.boxes.coding import flip_deltas
from detres.boxes.geometry import box_area, flip_boxes, scale_boxes
from detres.data.transforms import resized_size
from detres.detection.ensemble import mean_predictions, union_of_boxes
from detres.detection.roi_head import RegionPredictions

# Of an image of the pyramid (Girshick 2015): with the plain test's 1000 the scales 800 and 1000 would be one.
PYRAMID_LONG_SIDE = 2000
BEST_AREA = 224.0**2  # of a region: what the network was pre-trained on

# From the maps and boxes of each view, boxes in pixels of the maps' input, to features (R, D).
RegionFeatures = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]


# The image pyramid


def pyramid_sizes(
    height: int, width: int, scales: Sequence[int] | None, short_side: int, long_side: int
) -> dict[int, tuple[int, int]]:
    """Height and width to which an image is resized, by shorter side: the network's own and all of `scales`.

    Args:
        height: Of the original image.
        width: Of the original image.
        scales: Shorter sides of the pyramid; None, or the network's own alone, is the plain test.
        short_side: The network's own shorter side.
        long_side: Limit of the longer side in the plain test; a pyramid's is `PYRAMID_LONG_SIDE` (or this, if larger).
    """
    plain = scales is None or tuple(scales) == (short_side,)
    limit = long_side if plain else max(long_side, PYRAMID_LONG_SIDE)
    sides = sorted({short_side, *(scales or ())})
    return {side: resized_size(height, width, side, limit)[:2] for side in sides}


def adjacent_scales(areas: Tensor, area_factors: Sequence[float]) -> Tensor:
    """For each region the smaller of its two adjacent scales, (R,) int64 in 0..S-2.

    Of the pairs (k, k + 1) the one with the least |log(area f_k / 224^2)| + |log(area f_(k+1) / 224^2)|; of equal ones
    the smaller pair.

    Args:
        areas: (R,) of the boxes, square pixels at the network's own size; under 1 counts as 1.
        area_factors: S factors f from there to the area at each scale, S >= 2.
    """
    factors = torch.tensor(area_factors, dtype=torch.float64, device=areas.device)
    distances = (areas.double().clamp(min=1)[:, None] * factors / BEST_AREA).log().abs()  # (R, S)
    costs = distances[:, :-1] + distances[:, 1:]
    # Rounded, because halfway between scales is a tie whatever the last digit of the logarithm.
    return costs.round(decimals=9).argmin(dim=1)


def pyramid_features(
    region_features: RegionFeatures,
    maps: Sequence[Sequence[Tensor]],
    factors: Sequence[tuple[float, float]],
    boxes: Sequence[Tensor],
) -> Tensor:
    """Features (R, D) of all views' regions in order: the element-wise maximum of those from two adjacent scales.

    With one scale they are the features from its maps.

    Args:
        region_features: The head up to its class and box layers.
        maps: For each scale, of each view its map (1, C, h, w).
        factors: For each scale.
        boxes: For each view (R_i, 4).
    """
    if len(maps) == 1:
        return region_features(maps[0], _scale_all(boxes, factors[0]))
    areas = [math.prod(factor) for factor in factors]
    smaller = [adjacent_scales(box_area(view_boxes), areas) for view_boxes in boxes]
    merged: Tensor | None = None
    for scale, (maps_at_scale, factor) in enumerate(zip(maps, factors, strict=True)):
        chosen = [(pair == scale) | (pair + 1 == scale) for pair in smaller]
        regions = [view_boxes[rows] for view_boxes, rows in zip(boxes, chosen, strict=True)]
        features = region_features(maps_at_scale, _scale_all(regions, factor))
        rows = torch.cat(chosen)  # (R,)
        if merged is None:
            merged = features.new_full((len(rows), features.shape[1]), -math.inf)
        merged[rows] = torch.maximum(merged[rows], features)
    assert merged is not None
    return merged


def _scale_all(boxes: Sequence[Tensor], factor: tuple[float, float]) -> list[Tensor]:
    return [scale_boxes(view_boxes, factor) for view_boxes in boxes]


# The mirror image


def with_mirror_image(image: Tensor) -> list[Tensor]:
    """An image (3, H, W) and its mirror image."""
    return [image, image.flip(-1)]


def with_mirrored_boxes(boxes: Tensor, width: int) -> list[Tensor]:
    """Boxes (R, 4) of an image `width` pixels wide, and the same regions in its mirror image."""
    return [boxes, flip_boxes(boxes, width)]


def join_mirrored_boxes(boxes: Sequence[Tensor], width: int) -> Tensor:
    """The union of an image's boxes and those of its mirror image, mirrored back."""
    straight, mirrored = boxes
    return union_of_boxes([straight, flip_boxes(mirrored, width)])


def join_mirrored_predictions(predictions: Sequence[RegionPredictions]) -> RegionPredictions:
    """The mean of the predictions for an image's regions in it and in its mirror image."""
    straight, mirrored = predictions
    return mean_predictions([straight, RegionPredictions(mirrored.scores, flip_deltas(mirrored.offsets))])
