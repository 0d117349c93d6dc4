"""The four losses of joint training (Girshick 2015, eq. 1-3; Ren et al. 2015, eq. 1), and one training step.

Each image's losses are divided by the number of its own sampled references, then averaged over the images. The step's
two halves, `rpn_losses` and `rcnn_losses`, are the losses of the alternating stages too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from detres.data.detection_samples import DetectionSample
from detres.detection.config import RCNNConfig, RPNConfig
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.rpn import ImageOutputs, propose
from detres.detection.targets import AnchorTargets, RegionTargets, sample_anchors, sample_regions


def training_losses(
    network: FasterRCNN,
    samples: Sequence[DetectionSample],
    rpn: RPNConfig,
    rcnn: RCNNConfig,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """One step of approximate joint training: outputs, targets, proposals, sampled regions, losses.

    Args:
        network: The detector.
        samples: On its device.
        rpn: Anchors, proposals and the RPN's loss.
        rcnn: Regions and Fast R-CNN's loss.
        generator: Source of the random draws.

    Returns:
        Scalars `objectness`, `rpn_box_reg`, `classifier`, `box_reg`; their sum is minimized.
    """
    outputs = network([sample.image for sample in samples])
    losses = rpn_losses(outputs, samples, rpn, rcnn, generator)
    proposals = [
        propose(output, sample.scale, rpn, rpn) for output, sample in zip(outputs, samples, strict=True)
    ]
    maps = [output.features for output in outputs]
    return {**losses, **rcnn_losses(network, maps, proposals, samples, rcnn, generator)}


def rpn_losses(
    outputs: Sequence[ImageOutputs],
    samples: Sequence[DetectionSample],
    rpn: RPNConfig,
    rcnn: RCNNConfig,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """`objectness` and `rpn_box_reg` over sampled anchors; arguments as in `training_losses`."""
    targets = [
        sample_anchors(
            output.anchors,
            sample.boxes,
            output.size,
            rpn,
            generator,
            bg_iou_thresh_lo=None if sample.exhaustive else rcnn.partial_bg_iou_thresh_lo,
        )
        for output, sample in zip(outputs, samples, strict=True)
    ]
    return anchor_losses(outputs, targets, rpn.smooth_l1_beta)


def rcnn_losses(
    network: FasterRCNN,
    maps: Sequence[Tensor],
    proposals: Sequence[Tensor],
    samples: Sequence[DetectionSample],
    rcnn: RCNNConfig,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """`classifier` and `box_reg` over sampled regions.

    Args:
        network: The detector.
        maps: For each image its shared map (1, C, h, w).
        proposals: For each image (P, 4) in pixels of the network's input.
        samples: On the network's device.
        rcnn: Regions and Fast R-CNN's loss.
        generator: Source of the random draws.
    """
    num_classes = network.roi_head.box_predictor.num_classes
    targets = [
        sample_regions(
            boxes, sample.boxes, sample.labels, num_classes, rcnn, generator, exhaustive=sample.exhaustive
        )
        for boxes, sample in zip(proposals, samples, strict=True)
    ]
    sizes = [(sample.image.shape[-2], sample.image.shape[-1]) for sample in samples]
    logits, deltas = network.roi_head(maps, [target.boxes for target in targets], sizes)
    return region_losses(logits, deltas, targets, rcnn.smooth_l1_beta)


def anchor_losses(
    outputs: Sequence[ImageOutputs], targets: Sequence[AnchorTargets], smooth_l1_beta: float
) -> dict[str, Tensor]:
    """`objectness` (sigmoid log loss) and `rpn_box_reg` (smooth L1) over the sampled anchors."""
    objectness_losses, box_losses = [], []
    for output, target in zip(outputs, targets, strict=True):
        sampled = max(len(target.indices), 1)
        logits = output.objectness[target.indices]
        labels = torch.zeros_like(logits)
        labels[: target.positives] = 1
        deltas = output.deltas[target.indices[: target.positives]]
        objectness_losses.append(
            F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / sampled
        )
        box_losses.append(
            F.smooth_l1_loss(deltas, target.deltas, beta=smooth_l1_beta, reduction="sum") / sampled
        )
    return {
        "objectness": torch.stack(objectness_losses).mean(),
        "rpn_box_reg": torch.stack(box_losses).mean(),
    }


def region_losses(
    logits: Tensor, deltas: Tensor, targets: Sequence[RegionTargets], smooth_l1_beta: float
) -> dict[str, Tensor]:
    """`classifier` (softmax log loss) and `box_reg` (smooth L1 on the true class's deltas) over sampled regions.

    Args:
        logits: (R, K + 1) of all images' sampled regions, background last.
        deltas: (R, K, 4).
        targets: For each image.
        smooth_l1_beta: Where smooth L1 turns from square to line.
    """
    counts = [len(target.labels) for target in targets]
    class_losses, box_losses = [], []
    for image_logits, image_deltas, target in zip(
        logits.split(counts), deltas.split(counts), targets, strict=True
    ):
        sampled = max(len(target.labels), 1)
        positives = torch.arange(len(target.deltas), device=logits.device)
        true_class = image_deltas[positives, target.labels[: len(positives)]]  # (positives, 4)
        class_losses.append(F.cross_entropy(image_logits, target.labels, reduction="sum") / sampled)
        box_losses.append(
            F.smooth_l1_loss(true_class, target.deltas, beta=smooth_l1_beta, reduction="sum") / sampled
        )
    return {"classifier": torch.stack(class_losses).mean(), "box_reg": torch.stack(box_losses).mean()}
