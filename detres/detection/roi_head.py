"""Fast R-CNN on regions of the shared map: RoI pooling, conv5_x, and the class and box layers behind it.

Girshick 2015; He et al. 2015, Appendix A: RoI pooling is performed before conv5_1.

N images, R regions, K classes (background is K, the last logit), C channels of the map, s cells a side (14 before
conv5_1), D channels of a region's feature. Boxes are xyxy in pixels of the network's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detres.boxes.coding import TargetStds
from detres.detection.context import concat_global_context, pool_global_context
from detres.networks.resnet import Head
from detres.networks.roi_pooling import roi_align, roi_pool
from detres.networks.vgg import VGGHead


@dataclass(frozen=True)
class RoIPooler:
    """The pooling before the head: features (N, C, h, w) and regions (R, 5) to (R, C, s, s).

    Attributes:
        kind: `roi_pool` (the paper's RoI max pooling; Girshick 2015) or `roi_align` (He et al. 2017).
        output_size: s.
        stride: Input pixels per position of the map.
        sampling_ratio: RoIAlign's samples a side of a cell.
        aligned: RoIAlign shifted by half a pixel (detectron2) or not (torchvision).
    """

    kind: Literal["roi_pool", "roi_align"]
    output_size: int
    stride: int
    sampling_ratio: int = 2
    aligned: bool = False

    def __call__(self, features: Tensor, regions: Tensor, bin_stride: int = 1) -> Tensor:
        """Pooled features; with `bin_stride` n only each nth cell along both axes: (R, C, ceil(s / n), ...)."""
        scale = 1 / self.stride
        if self.kind == "roi_pool":
            return roi_pool(features, regions, self.output_size, scale)[:, :, ::bin_stride, ::bin_stride]
        return roi_align(
            features,
            regions,
            self.output_size,
            scale,
            self.sampling_ratio,
            self.aligned,
            bin_stride=bin_stride,
        )

    def pool(self, maps: Sequence[Tensor], boxes: Sequence[Tensor], bin_stride: int = 1) -> Tensor:
        """Pooled features (R, C, s, s) of every image's boxes, in order.

        Args:
            maps: For each image (1, C, h, w).
            boxes: For each image (R_i, 4) in pixels of the network's input.
            bin_stride: As in a call.
        """
        if (
            len({features.shape for features in maps}) == 1
        ):  # joining the maps copies less than joining the cells
            regions = [F.pad(image_boxes, (1, 0), value=image) for image, image_boxes in enumerate(boxes)]
            return self(torch.cat(list(maps)), torch.cat(regions), bin_stride)
        pooled = [
            self(features, F.pad(image_boxes, (1, 0)), bin_stride)
            for features, image_boxes in zip(maps, boxes, strict=True)
        ]
        return torch.cat(pooled)


class BoxPredictor(nn.Module):
    """The class and box layers (Girshick 2015, §2.1): features (R, inputs) to logits (R, K + 1) and deltas (R, K, 4).

    The average over conv5_x's cells says what a region holds and, at first, nothing of where it ends (a ridge
    regression explains 0.5 % of the offsets' variance). conv5_x has to learn to put that in, and learns how through the
    box layer's weights alone. With weights of 0.001, each class's own, each of K classes teaches it with 1 / K of the
    regions; with 20 classes this did not begin in 900 steps. One larger answer for all classes begins sooner
    (docs/results/voc2007_mini.md).

    Args:
        inputs: Channels of a feature, 2 D with global context.
        num_classes: K.
        bbox_pred_init: `per_class`: normal, std 0.001 (Girshick 2015); `shared`: std 0.03 and equal for all classes in
            the first `own_features` columns.
        own_features: D. Columns of the whole image's feature keep std 0.001: it is the same for all regions of an image
            and cannot tell where one of them ends.
    """

    def __init__(
        self,
        inputs: int,
        num_classes: int,
        bbox_pred_init: Literal["per_class", "shared"] = "per_class",
        own_features: int | None = None,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.cls_score = nn.Linear(inputs, num_classes + 1)
        self.bbox_pred = nn.Linear(inputs, num_classes * 4)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        if bbox_pred_init == "shared":
            own = inputs if own_features is None else own_features
            with torch.no_grad():
                self.bbox_pred.weight[:, :own] = torch.empty(4, own).normal_(std=0.03).repeat(num_classes, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (R, K + 1), background last, and deltas (R, K, 4); at least float32."""
        features = features.to(self.cls_score.weight.dtype)
        deltas = self.bbox_pred(features).unflatten(1, (-1, 4))  # also of no regions
        precision = torch.promote_types(
            features.dtype, torch.float32
        )  # bfloat16 becomes float32, float64 stays
        return self.cls_score(features).to(precision), deltas.to(precision)


class RoIHead(nn.Module):
    """From regions of the shared map to class logits and per-class box deltas.

    Args:
        body: conv5_x with average pooling (VGG: fc6 and fc7): (R, C, s, s) to (R, D).
        num_classes: K.
        pooler: From the map to the body's input.
        global_context: Whether the class and box layers also get the whole image's feature (see `context`).
        bbox_pred_init: See `BoxPredictor`.
    """

    def __init__(
        self,
        body: Head | VGGHead,
        num_classes: int,
        pooler: RoIPooler,
        global_context: bool = False,
        bbox_pred_init: Literal["per_class", "shared"] = "per_class",
    ):
        super().__init__()
        self.body = body
        self.pooler = pooler
        self.global_context = global_context
        inputs = body.out_channels * (2 if global_context else 1)
        self.box_predictor = BoxPredictor(inputs, num_classes, bbox_pred_init, body.out_channels)

    def forward(
        self, maps: Sequence[Tensor], boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Class logits (R, K + 1), background last, and deltas (R, K, 4) of every image's boxes, in order.

        Args:
            maps: For each image its shared map (1, C, h, w).
            boxes: For each image (R_i, 4).
            sizes: Height and width of each image's input, for global context.
        """
        features = self.region_features(maps, boxes)
        if self.global_context:
            context = pool_global_context(lambda whole: self.region_features(maps, whole), sizes, boxes[0])
            features = concat_global_context(features, context, [len(image_boxes) for image_boxes in boxes])
        return self.box_predictor(features)

    def region_features(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Features (R, D) of every image's boxes, in order: pooling and the body; arguments as in `forward`."""
        regions = sum(len(image_boxes) for image_boxes in boxes)
        positions = sum(features.shape[2] * features.shape[3] for features in maps)
        if (
            self.pooler.kind == "roi_align"  # a sum commutes with a 1x1 convolution, a maximum does not
            and isinstance(self.body, Head)
            and self.body.begins_with_1x1
            and regions * self.pooler.output_size**2 > positions
            and maps[0].device.type
            == "cpu"  # on other devices RoIAlign also pools the cells that are not read
        ):
            return self.body.convolve_before_pooling(
                maps, lambda hidden, bin_stride: self.pooler.pool(hidden, boxes, bin_stride)
            )
        return self.body(self.pooler.pool(maps, boxes))


@dataclass(frozen=True)
class RegionPredictions:
    """A network's predictions for one image's regions.

    Attributes:
        scores: (R, K) softmax without background.
        offsets: (R, K, 4) from the regions to the objects, (dx/w, dy/h, log dw, log dh), not divided by anything, so
            that networks trained with other `target_stds`, or seeing the image at another size, have the same.
    """

    scores: Tensor
    offsets: Tensor


def region_predictions(logits: Tensor, deltas: Tensor, target_stds: TargetStds) -> RegionPredictions:
    """Scores and offsets from logits (R, K + 1), background last, and deltas (R, K, 4).

    Args:
        logits: From `RoIHead`.
        deltas: From `RoIHead`.
        target_stds: The numbers that box targets were divided by in training.
    """
    return RegionPredictions(logits.softmax(dim=1)[:, :-1], deltas * deltas.new_tensor(target_stds))
