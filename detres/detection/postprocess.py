"""From predictions to detections: decoding, score threshold, suppression per class (NMS 0.3), voting.

Girshick 2015, §2; He et al. 2015, Appendix A and B: NMS of the union of all predictions, box voting.

R regions, K classes, M candidates. Boxes are xyxy in pixels of one image's input.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detres.boxes.coding import decode_boxes
from detres.boxes.geometry import clip_boxes
from detres.boxes.nms import nms_per_class
from detres.boxes.voting import vote_boxes
from detres.detection.roi_head import RegionPredictions

MIN_SIZE = 1e-2  # pixels: boxes with a shorter side are dropped


@dataclass(frozen=True)
class DecodedRegions:
    """Scores and boxes of one image's regions, before suppression.

    Attributes:
        scores: (R, K), without background.
        boxes: (R, K, 4), one for each class, clipped to the image.
    """

    scores: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class Detections:
    """The objects of one image, best first.

    Attributes:
        boxes: (N, 4) float32 xyxy.
        scores: (N,) float32.
        labels: (N,) int64 in 0..K-1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def decode_predictions(
    predictions: RegionPredictions, regions: Tensor, image_size: tuple[int, int]
) -> DecodedRegions:
    """The boxes that the offsets make of `regions` (R, 4), clipped to an image of height and width `image_size`."""
    boxes = decode_boxes(predictions.offsets, regions)  # (R, K, 4)
    return DecodedRegions(predictions.scores, clip_boxes(boxes, *image_size))


def select_candidates(predictions: DecodedRegions, score_thresh: float) -> Detections:
    """Every pair of region and class that scores above `score_thresh`, in no order: M candidates."""
    sides = predictions.boxes[..., 2:] - predictions.boxes[..., :2]
    region, label = torch.nonzero(
        (predictions.scores > score_thresh) & (sides >= MIN_SIZE).all(dim=-1), as_tuple=True
    )
    return Detections(predictions.boxes[region, label], predictions.scores[region, label], label)


def postprocess_detections(candidates: Detections, nms_thresh: float, detections_per_img: int) -> Detections:
    """The candidates that suppression keeps, best first.

    Args:
        candidates: From `select_candidates`.
        nms_thresh: IoU above which a worse candidate of the same class is dropped.
        detections_per_img: At most this many are kept.
    """
    keep = nms_per_class(
        candidates.boxes, candidates.scores, candidates.labels, nms_thresh, detections_per_img
    )
    return Detections(candidates.boxes[keep], candidates.scores[keep], candidates.labels[keep])


def vote_detections(detections: Detections, candidates: Detections, voting_iou_thresh: float) -> Detections:
    """Move each detection to the mean of the candidates of its class around it (see `boxes.voting`)."""
    boxes = vote_boxes(
        detections.boxes,
        detections.labels,
        candidates.boxes,
        candidates.scores,
        candidates.labels,
        voting_iou_thresh,
    )
    return replace(detections, boxes=boxes)
