"""What RPN and Fast R-CNN are trained towards: matched, sampled references and their targets (He et al. 2015, App. A).

G ground-truth boxes of an image, S sampled references. Boxes are xyxy in pixels of the network's input; labels are
0..K-1, background is K.

In an image whose objects are not all annotated, references under `rcnn.partial_bg_iou_thresh_lo` are left out, because
they may be objects; without any annotated object nothing of such an image takes part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detres.boxes.coding import encode_boxes
from detres.boxes.geometry import box_iou, boxes_inside
from detres.boxes.matching import match_boxes
from detres.boxes.sampling import sample_matches
from detres.detection.config import RCNNConfig, RPNConfig


@dataclass(frozen=True)
class AnchorTargets:
    """The sampled anchors of one image, positives first.

    Attributes:
        indices: (S,) int64, positions among the image's anchors.
        positives: How many of them are positive.
        deltas: (positives, 4) from the anchor to its object.
    """

    indices: Tensor
    positives: int
    deltas: Tensor


@torch.no_grad()
def sample_anchors(
    anchors: Tensor,
    gt_boxes: Tensor,
    image_size: tuple[int, int],
    rpn: RPNConfig,
    generator: torch.Generator,
    *,
    bg_iou_thresh_lo: float | None = None,
) -> AnchorTargets:
    """Match anchors (N, 4) to ground truth (G, 4) and sample those of the loss (Ren et al. 2015, §3.1.2).

    Args:
        anchors: Of the whole map; possibly none lies inside the image.
        gt_boxes: Ground truth.
        image_size: Height and width of the network's input.
        rpn: Thresholds, number and share of positives.
        generator: Source of the random draws.
        bg_iou_thresh_lo: For an image whose objects are not all annotated: anchors under this overlap are left out.
    """
    allowed = torch.arange(len(anchors), device=anchors.device)
    if not rpn.cross_boundary:
        allowed = allowed[boxes_inside(anchors, *image_size)]
    matches, objects = match_boxes(
        box_iou(anchors[allowed], gt_boxes),
        fg_iou_thresh=rpn.fg_iou_thresh,
        bg_iou_thresh=rpn.bg_iou_thresh,
        bg_iou_thresh_lo=bg_iou_thresh_lo or 0.0,
        allow_low_quality_matches=True,
    )
    count = rpn.batch_size_per_image if bg_iou_thresh_lo is None or len(gt_boxes) else 0
    positives, negatives = sample_matches(matches, count, rpn.positive_fraction, generator)
    indices = allowed[torch.cat((positives, negatives))]
    deltas = encode_boxes(gt_boxes[objects[positives]], anchors[allowed[positives]])
    return AnchorTargets(indices, len(positives), deltas)


@dataclass(frozen=True)
class RegionTargets:
    """The sampled regions of one image, positives first.

    Attributes:
        boxes: (S, 4).
        labels: (S,) int64 in 0..K, background K.
        deltas: (positives, 4), divided by the target stds.
    """

    boxes: Tensor
    labels: Tensor
    deltas: Tensor


@torch.no_grad()
def sample_regions(
    proposals: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    num_classes: int,
    rcnn: RCNNConfig,
    generator: torch.Generator,
    *,
    exhaustive: bool = True,
) -> RegionTargets:
    """Match proposals (P, 4) and the ground truth itself to the ground truth, and sample those of the loss.

    Args:
        proposals: Of the RPN.
        gt_boxes: (G, 4).
        gt_labels: (G,) int64 in 0..K-1.
        num_classes: K.
        rcnn: Thresholds, number and share of positives, target stds (Girshick 2015, §2.3).
        generator: Source of the random draws.
        exhaustive: Whether all objects of the image are annotated.
    """
    candidates = torch.cat((proposals, gt_boxes))
    lowest, count = rcnn.bg_iou_thresh_lo, rcnn.batch_size_per_image
    if not exhaustive:
        lowest = max(rcnn.partial_bg_iou_thresh_lo, lowest)
        count = count if len(gt_boxes) else 0
    matches, objects = match_boxes(
        box_iou(candidates, gt_boxes),
        fg_iou_thresh=rcnn.fg_iou_thresh,
        bg_iou_thresh=rcnn.bg_iou_thresh,
        bg_iou_thresh_lo=lowest,
    )
    positives, negatives = sample_matches(matches, count, rcnn.positive_fraction, generator)
    matched = objects[positives]
    background = gt_labels.new_full((len(negatives),), num_classes)
    return RegionTargets(
        boxes=candidates[torch.cat((positives, negatives))],
        labels=torch.cat((gt_labels[matched], background)),
        deltas=encode_boxes(gt_boxes[matched], candidates[positives], rcnn.target_stds),
    )
