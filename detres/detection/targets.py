"""What RPN and Fast R-CNN are trained towards: matched, sampled references and their targets (PAPER: Appendix A).

G objects of an image, S sampled references. Boxes are xyxy in pixels of the network's input; labels 0..K-1; background
is K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detres.boxes.coding import TargetStds, encode_boxes
from detres.boxes.geometry import box_iou, boxes_inside
from detres.boxes.matching import match_boxes
from detres.boxes.sampling import sample_matches


@dataclass(frozen=True)
class AnchorSampling:
    """Which anchors take part in the RPN's loss (Ren et al. 2015, §3.1.2).

    Attributes:
        count: Sampled anchors an image.
        positive_fraction: At most this share of them positive.
        fg_iou_thresh: Positive from this overlap on.
        bg_iou_thresh: Negative below this overlap with every object.
        cross_boundary: Whether anchors that cross the image's border take part.
        bg_iou_thresh_lo: Anchors under this overlap are left out.
    """

    count: int = 256
    positive_fraction: float = 0.5
    fg_iou_thresh: float = 0.7
    bg_iou_thresh: float = 0.3
    cross_boundary: bool = False
    bg_iou_thresh_lo: float = 0.0


@dataclass(frozen=True)
class AnchorTargets:
    """The sampled anchors of one image, positives first.

    Attributes:
        indices: (S,) int64, places among the image's anchors.
        positives: How many of them are positive.
        deltas: (positives, 4) from the anchor to its object.
    """

    indices: Tensor
    positives: int
    deltas: Tensor


@torch.no_grad()
def sample_anchors(
    anchors: Tensor,
    boxes: Tensor,
    image_size: tuple[int, int],
    sampling: AnchorSampling,
    generator: torch.Generator,
) -> AnchorTargets:
    """Match anchors (N, 4) to objects (G, 4) and draw those of the loss; it may be that none lies inside the image."""
    allowed = torch.arange(len(anchors), device=anchors.device)
    if not sampling.cross_boundary:
        allowed = allowed[boxes_inside(anchors, *image_size)]
    matches, objects = match_boxes(
        box_iou(anchors[allowed], boxes),
        fg_iou_thresh=sampling.fg_iou_thresh,
        bg_iou_thresh=sampling.bg_iou_thresh,
        bg_iou_thresh_lo=sampling.bg_iou_thresh_lo,
        keep_best=True,
    )
    positives, negatives = sample_matches(matches, sampling.count, sampling.positive_fraction, generator)
    indices = allowed[torch.cat((positives, negatives))]
    deltas = encode_boxes(boxes[objects[positives]], anchors[allowed[positives]])
    return AnchorTargets(indices, len(positives), deltas)


@dataclass(frozen=True)
class RegionSampling:
    """Which regions take part in Fast R-CNN's loss (Girshick 2015, §2.3).

    Attributes:
        count: Sampled regions an image.
        positive_fraction: At most this share of them positive.
        fg_iou_thresh: Positive from this overlap on.
        bg_iou_thresh: Negative below this overlap.
        bg_iou_thresh_lo: Regions under this overlap are left out (0.1 on VOC; 0 on COCO).
        target_stds: What the four box offsets are divided by.
    """

    count: int = 128
    positive_fraction: float = 0.25
    fg_iou_thresh: float = 0.5
    bg_iou_thresh: float = 0.5
    bg_iou_thresh_lo: float = 0.0
    target_stds: TargetStds = (0.1, 0.1, 0.2, 0.2)


@dataclass(frozen=True)
class RegionTargets:
    """The sampled regions of one image, positives first.

    Attributes:
        boxes: (S, 4).
        labels: (S,) int64 in 0..K, background K.
        deltas: (positives, 4), divided by the target_stds.
    """

    boxes: Tensor
    labels: Tensor
    deltas: Tensor


@torch.no_grad()
def sample_regions(
    proposals: Tensor,
    boxes: Tensor,
    labels: Tensor,
    num_classes: int,
    sampling: RegionSampling,
    generator: torch.Generator,
) -> RegionTargets:
    """Match proposals (P, 4), joined by the objects themselves, to objects (G, 4) and draw those of the loss."""
    candidates = torch.cat((proposals, boxes))
    matches, objects = match_boxes(
        box_iou(candidates, boxes),
        fg_iou_thresh=sampling.fg_iou_thresh,
        bg_iou_thresh=sampling.bg_iou_thresh,
        bg_iou_thresh_lo=sampling.bg_iou_thresh_lo,
    )
    positives, negatives = sample_matches(matches, sampling.count, sampling.positive_fraction, generator)
    matched = objects[positives]
    background = labels.new_full((len(negatives),), num_classes)
    return RegionTargets(
        boxes=candidates[torch.cat((positives, negatives))],
        labels=torch.cat((labels[matched], background)),
        deltas=encode_boxes(boxes[matched], candidates[positives], sampling.target_stds),
    )
