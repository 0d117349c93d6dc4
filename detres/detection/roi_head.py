"""Fast R-CNN on regions of the shared map: pooling, conv5_x, sibling layers.

Girshick 2015; He et al. 2015, Appendix A.

R regions, K classes, C channels of the map, s cells a side (14 before conv5_1), D channels of a region's feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detres.boxes.coding import TargetStds, decode_boxes
from detres.boxes.geometry import clip_boxes
from detres.boxes.nms import nms_per_class
from detres.boxes.voting import vote_boxes
from detres.detection.context import concat_global_context, whole_image_boxes
from detres.networks.resnet import Head
from detres.networks.roi_pooling import roi_align, roi_pool


@dataclass(frozen=True)
class RegionPooling:
    """The pooling before the head: (features (N, C, h, w), regions (R, 5)) -> (R, C, cells, cells).

    Attributes:
        kind: "roi_pool" (the paper's RoI pooling; Girshick 2015) or "roi_align" (He et al. 2017).
        cells: Cells a side.
        stride: Input pixels a position of the map.
        sampling_ratio: RoIAlign's samples a side of a cell.
        aligned: RoIAlign shifted by half a pixel (detectron2) or not (torchvision).
    """

    kind: Literal["roi_pool", "roi_align"]
    cells: int
    stride: int
    sampling_ratio: int = 2
    aligned: bool = False

    def __call__(self, features: Tensor, regions: Tensor, every: int = 1) -> Tensor:
        """Pooled features; with `every` n only each nth cell along both axes: (R, C, ceil(cells / n), ...)."""
        if self.kind == "roi_pool":
            return roi_pool(features, regions, self.cells, 1 / self.stride)[:, :, ::every, ::every]
        return roi_align(
            features, regions, self.cells, 1 / self.stride, self.sampling_ratio, self.aligned, every=every
        )

    def pool(self, maps: Sequence[Tensor], boxes: Sequence[Tensor], every: int = 1) -> Tensor:
        """Pooled features (R, C, s, s) of every image's boxes, in order.

        Args:
            maps: For each image (1, C, h, w).
            boxes: For each image (R_i, 4) in pixels of the network's input.
            every: As in a call.
        """
        if (
            len({features.shape for features in maps}) == 1
        ):  # one map of all images is smaller to join than the cells
            regions = [
                F.pad(boxes_of_image, (1, 0), value=image) for image, boxes_of_image in enumerate(boxes)
            ]
            return self(torch.cat(list(maps)), torch.cat(regions), every)
        pooled = [
            self(features, F.pad(boxes_of_image, (1, 0)), every)
            for features, boxes_of_image in zip(maps, boxes, strict=True)
        ]
        return torch.cat(pooled)


class RegionHead(nn.Module):
    """From regions of the shared map to class logits and per-class box deltas.

    Args:
        body: conv5_x with average pooling (or fc6, fc7): (R, C, s, s) -> (R, D).
        features: D.
        num_classes: K.
        pooling: From the map to what the body takes.
        context: Whether the sibling layers also get the whole image's feature (see `context`).
    """

    def __init__(
        self, body: nn.Module, features: int, num_classes: int, pooling: RegionPooling, context: bool = False
    ):
        super().__init__()
        self.body = body
        self.pooling = pooling
        self.context = context
        inputs = 2 * features if context else features
        self.class_logits = nn.Linear(inputs, num_classes + 1)
        self.box_deltas = nn.Linear(inputs, num_classes * 4)
        for layer, deviation in ((self.class_logits, 0.01), (self.box_deltas, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def share_box_start(self) -> None:
        """Start what the box layer makes of a region's own feature anew: normal, std 0.03, alike for every class.

        The average over conv5_x's cells says what a region holds and, at first, nothing of where it ends (a ridge
        regression explains 0.5 % of the offsets' variance): conv5_x has to learn to put that in. It is told how through
        this layer's weights alone, and each of K classes learns them from 1 / K of the regions. Weights of 0.001, each
        class's own, did not begin in 900 steps with 20 classes; one answer for all classes, large enough to be heard,
        begins sooner (docs/results/voc2007_mini.md).

        With context the columns of the whole image's feature keep their small start: it is the same for all regions of
        a picture and cannot tell where one of them ends.
        """
        own = self.box_deltas.in_features // (2 if self.context else 1)
        rows = torch.empty(4, own).normal_(std=0.03)
        self.box_deltas.weight[:, :own] = rows.repeat(self.box_deltas.out_features // 4, 1)

    def forward(
        self,
        maps: Sequence[Tensor],
        boxes: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Class logits (R, K + 1), background last, and deltas (R, K, 4) of every image's boxes, in order.

        Args:
            maps: For each image its shared map (1, C, h, w).
            boxes: For each image (R_i, 4) in pixels of the network's input.
            sizes: Height and width of each image's input; only global context needs them.
        """
        features = self.features(maps, boxes)
        if self.context:
            assert sizes is not None
            whole = self.features(maps, whole_image_boxes(sizes, boxes[0]))  # (N, D)
            features = concat_global_context(features, whole, [len(of_image) for of_image in boxes])
        return self.siblings(features)

    def features(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Features (R, D) of every image's boxes, in order: pooling and the body; arguments as in `forward`."""
        regions = sum(len(boxes_of_image) for boxes_of_image in boxes)
        positions = sum(features.shape[2] * features.shape[3] for features in maps)
        if (
            self.pooling.kind == "roi_align"  # a sum; a maximum does not change places with a convolution
            and isinstance(self.body, Head)
            and self.body.begins_with_1x1
            and regions * self.pooling.cells**2 > positions
            and maps[0].device.type == "cpu"  # RoIAlign elsewhere pools the cells, too, that no one reads
        ):
            return self.body.of_maps(maps, lambda maps, every: self.pooling.pool(maps, boxes, every))
        return self.body(self.pooling.pool(maps, boxes))

    def siblings(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits and deltas of features (R, D), with context (R, 2 D); at least float32."""
        features = features.to(self.class_logits.weight.dtype)
        deltas = self.box_deltas(features).unflatten(1, (-1, 4))  # also of no regions
        precision = torch.promote_types(features.dtype, torch.float32)  # bf16 goes up, float64 stays
        return self.class_logits(features).to(precision), deltas.to(precision)


@dataclass(frozen=True)
class RegionOutputs:
    """What a network says of one image's regions.

    Attributes:
        scores: (R, K) softmax without background.
        offsets: (R, K, 4) from the regions to the objects, (dx/w, dy/h, log dw, log dh), not divided by anything:
            networks trained with other target_stds, or seeing the picture at another size, have the same.
    """

    scores: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class ScoredRegions:
    """What one image's regions turned into, before suppression.

    Attributes:
        scores: (R, K), without background.
        boxes: (R, K, 4) regressed for each class, clipped to the image.
    """

    scores: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class Detections:
    """What was found in one image, best first.

    Attributes:
        boxes: (N, 4) float32 xyxy.
        scores: (N,) float32.
        labels: (N,) int64 in 0..K-1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def region_outputs(logits: Tensor, deltas: Tensor, target_stds: TargetStds) -> RegionOutputs:
    """Scores and offsets from a head's logits (R, K + 1), background last, and deltas (R, K, 4).

    Args:
        logits: From `RegionHead`.
        deltas: From `RegionHead`.
        target_stds: What box offsets were divided by in training.
    """
    return RegionOutputs(logits.softmax(dim=1)[:, :-1], deltas * deltas.new_tensor(target_stds))


def regressed(outputs: RegionOutputs, regions: Tensor, image_size: tuple[int, int]) -> ScoredRegions:
    """The boxes that the offsets make of `regions` (R, 4), clipped to an image of height and width `image_size`."""
    boxes = decode_boxes(outputs.offsets, regions)  # (R, K, 4)
    return ScoredRegions(outputs.scores, clip_boxes(boxes, *image_size))


def class_scores_and_boxes(
    logits: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    image_size: tuple[int, int],
    target_stds: TargetStds,
) -> tuple[Tensor, Tensor]:
    """Softmax scores without background (R, K) and boxes (R, K, 4) clipped to the image, of one network.

    Args:
        logits: (R, K + 1), background last.
        deltas: (R, K, 4).
        proposals: (R, 4).
        image_size: Height and width of the network's input.
        target_stds: The four target_stds of the box targets.
    """
    scored = regressed(region_outputs(logits, deltas, target_stds), proposals, image_size)
    return scored.scores, scored.boxes


def suppress(
    scores: Tensor,
    boxes: Tensor,
    *,
    score_thresh: float,
    nms: float,
    detections_per_img: int,
    min_size: float = 1e-2,
    voting_iou_thresh: float | None = None,
) -> Detections:
    """The detections of one image: score threshold, suppression per class, the best of all classes, voting.

    Args:
        scores: (R, K).
        boxes: (R, K, 4).
        score_thresh: Scores must be above this.
        nms: IoU above which a worse detection of the same class is dropped.
        detections_per_img: At most this many.
        min_size: Boxes with a side under this many input pixels are dropped.
        voting_iou_thresh: Move each kept box to the mean of those of its class that overlap it by more than this (see
            `boxes.voting`); None: no voting.
    """
    sides = boxes[..., 2:] - boxes[..., :2]
    region, label = torch.nonzero((scores > score_thresh) & (sides >= min_size).all(dim=-1), as_tuple=True)
    scores, boxes = scores[region, label], boxes[region, label]
    keep = nms_per_class(boxes, scores, label, nms, detections_per_img)
    kept = boxes[keep]
    if voting_iou_thresh is not None:
        kept = vote_boxes(kept, label[keep], boxes, scores, label, voting_iou_thresh)
    return Detections(kept, scores[keep], label[keep])
