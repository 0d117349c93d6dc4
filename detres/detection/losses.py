"""The four losses of joint training (Girshick 2015, eq. 1-3; Ren et al. 2015, eq. 1), and one training step.

Each image's losses are divided by its own sampled references, then averaged over the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from detres.detection.faster_rcnn import FasterRCNN, ImageOutputs
from detres.detection.rpn import ProposalOptions, propose
from detres.detection.targets import (
    AnchorSampling,
    AnchorTargets,
    RegionSampling,
    RegionTargets,
    sample_anchors,
    sample_regions,
)


@dataclass(frozen=True)
class StepOptions:
    """The numbers of a training step.

    Attributes:
        anchors: Sampling of the RPN's loss.
        proposals: Proposals an image in training.
        regions: Sampling of Fast R-CNN's loss.
        num_classes: K.
        anchor_beta: Where the RPN's smooth L1 turns from square to line (1/9, py-faster-rcnn).
        region_beta: The same of Fast R-CNN's (1; Girshick 2015).
        partial_bg_iou_thresh_lo: In images whose objects are not all annotated, anchors and regions under this
            overlap are left out: they may be objects. Without any object nothing of such a picture takes part.
    """

    anchors: AnchorSampling
    proposals: ProposalOptions
    regions: RegionSampling
    num_classes: int
    anchor_beta: float = 1 / 9
    region_beta: float = 1.0
    partial_bg_iou_thresh_lo: float = 0.1

    def sampling(self, objects: int, exhaustive: bool) -> tuple[AnchorSampling, RegionSampling]:
        """How anchors and regions of a picture with so many objects are drawn."""
        if exhaustive:
            return self.anchors, self.regions
        least = self.partial_bg_iou_thresh_lo
        anchors = replace(self.anchors, bg_iou_thresh_lo=least, count=self.anchors.count if objects else 0)
        lowest = max(least, self.regions.bg_iou_thresh_lo)
        return anchors, replace(
            self.regions, bg_iou_thresh_lo=lowest, count=self.regions.count if objects else 0
        )


def training_losses(
    network: FasterRCNN,
    images: Sequence[Tensor],
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    scales: Sequence[tuple[float, float]],
    options: StepOptions,
    generator: torch.Generator,
    exhaustive: Sequence[bool] | None = None,
) -> dict[str, Tensor]:
    """One step of approximate joint training: outputs, targets, proposals, sampled regions, losses.

    Args:
        network: The detector.
        images: For each image (3, H, W) uint8 RGB.
        boxes: For each image (G, 4) in its pixels; G may be 0.
        labels: For each image (G,) int64 in 0..K-1.
        scales: For each image the (vertical, horizontal) factor from the original picture.
        options: The step's numbers.
        generator: Source of the random draws.
        exhaustive: For each image whether all its objects are given; None: they are.

    Returns:
        Scalars `rpn_objectness`, `rpn_box`, `region_class`, `region_box`; their sum is minimized.
    """
    outputs = network(images)
    anchor_targets, region_targets = draw_targets(
        outputs, boxes, labels, scales, options, generator, exhaustive
    )
    logits, deltas = network.region_head(
        [output.features for output in outputs],
        [target.boxes for target in region_targets],
        [output.size for output in outputs],
    )
    return {
        **rpn_losses(outputs, anchor_targets, options.anchor_beta),
        **region_losses(logits, deltas, region_targets, options.region_beta),
    }


def draw_targets(
    outputs: Sequence[ImageOutputs],
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    scales: Sequence[tuple[float, float]],
    options: StepOptions,
    generator: torch.Generator,
    exhaustive: Sequence[bool] | None = None,
) -> tuple[list[AnchorTargets], list[RegionTargets]]:
    """Sampled anchors, proposals, and sampled regions of every image; arguments as in `training_losses`."""
    anchor_targets = draw_anchors(outputs, boxes, options, generator, exhaustive)
    proposals = [
        propose(output.objectness, output.deltas, output.anchors, output.size, scale, options.proposals)
        for output, scale in zip(outputs, scales, strict=True)
    ]
    return anchor_targets, draw_regions(proposals, boxes, labels, options, generator, exhaustive)


def draw_anchors(
    outputs: Sequence[ImageOutputs],
    boxes: Sequence[Tensor],
    options: StepOptions,
    generator: torch.Generator,
    exhaustive: Sequence[bool] | None = None,
) -> list[AnchorTargets]:
    """Sampled anchors of every image; arguments as in `training_losses`."""
    complete = exhaustive if exhaustive is not None else [True] * len(outputs)
    return [
        sample_anchors(
            output.anchors, objects, output.size, options.sampling(len(objects), all_given)[0], generator
        )
        for output, objects, all_given in zip(outputs, boxes, complete, strict=True)
    ]


def draw_regions(
    proposals: Sequence[Tensor],
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    options: StepOptions,
    generator: torch.Generator,
    exhaustive: Sequence[bool] | None = None,
) -> list[RegionTargets]:
    """Sampled regions of every image, given its proposals (P, 4); the others as in `training_losses`."""
    complete = exhaustive if exhaustive is not None else [True] * len(proposals)
    return [
        sample_regions(
            proposed,
            objects,
            classes,
            options.num_classes,
            options.sampling(len(objects), all_given)[1],
            generator,
        )
        for proposed, objects, classes, all_given in zip(proposals, boxes, labels, complete, strict=True)
    ]


def rpn_losses(
    outputs: Sequence[ImageOutputs], targets: Sequence[AnchorTargets], beta: float
) -> dict[str, Tensor]:
    """`rpn_objectness` (sigmoid log loss) and `rpn_box` (smooth L1) over the sampled anchors."""
    objectness_losses, box_losses = [], []
    for output, target in zip(outputs, targets, strict=True):
        sampled = max(len(target.indices), 1)
        logits = output.objectness[target.indices]
        wanted = torch.zeros_like(logits)
        wanted[: target.positives] = 1
        deltas = output.deltas[target.indices[: target.positives]]
        objectness_losses.append(
            F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / sampled
        )
        box_losses.append(F.smooth_l1_loss(deltas, target.deltas, beta=beta, reduction="sum") / sampled)
    return {
        "rpn_objectness": torch.stack(objectness_losses).mean(),
        "rpn_box": torch.stack(box_losses).mean(),
    }


def region_losses(
    logits: Tensor, deltas: Tensor, targets: Sequence[RegionTargets], beta: float
) -> dict[str, Tensor]:
    """`region_class` (softmax log loss) and `region_box` (smooth L1 on the true class's deltas) over sampled regions.

    Args:
        logits: (R, K + 1) of all images' sampled regions, background last.
        deltas: (R, K, 4).
        targets: For each image.
        beta: Where smooth L1 turns from square to line.
    """
    counts = [len(target.labels) for target in targets]
    class_losses, box_losses = [], []
    for image_logits, image_deltas, target in zip(
        logits.split(counts), deltas.split(counts), targets, strict=True
    ):
        sampled = max(len(target.labels), 1)
        positives = torch.arange(len(target.deltas), device=logits.device)
        of_class = image_deltas[positives, target.labels[: len(positives)]]  # (positives, 4)
        class_losses.append(F.cross_entropy(image_logits, target.labels, reduction="sum") / sampled)
        box_losses.append(F.smooth_l1_loss(of_class, target.deltas, beta=beta, reduction="sum") / sampled)
    return {"region_class": torch.stack(class_losses).mean(), "region_box": torch.stack(box_losses).mean()}
