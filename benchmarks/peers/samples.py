"""The same sampled anchors and regions for a detector of ours and for the torchvision composition.

Girshick 2015, §2.3; Ren et al. 2015, §3.1.3: losses can be compared only on the same samples. K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN

from benchmarks.peers.composition import parts_of
from detres.data.detection_samples import DetectionSample
from detres.detection.config import RCNNConfig, RPNConfig
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.rpn import propose
from detres.detection.targets import AnchorTargets, RegionTargets, sample_anchors, sample_regions


@torch.no_grad()
def sample_targets(
    network: FasterRCNN,
    samples: Sequence[DetectionSample],
    rpn: RPNConfig,
    rcnn: RCNNConfig,
    generator: torch.Generator,
) -> tuple[list[AnchorTargets], list[RegionTargets]]:
    """The anchors and regions that `training_losses` samples with a generator in the same state; arguments as there.

    Images whose objects are not all annotated are not provided for, because the composition has nothing like them.
    """
    outputs = network([sample.image for sample in samples])
    anchors = [
        sample_anchors(output.anchors, sample.boxes, output.size, rpn, generator)
        for output, sample in zip(outputs, samples, strict=True)
    ]
    num_classes = network.roi_head.box_predictor.num_classes
    regions = []
    for output, sample in zip(outputs, samples, strict=True):
        proposals = propose(output, sample.scale, rpn, rpn)
        regions.append(sample_regions(proposals, sample.boxes, sample.labels, num_classes, rcnn, generator))
    return anchors, regions


@contextmanager
def same_samples(
    peer: TorchvisionFasterRCNN, anchors: Sequence[AnchorTargets], regions: Sequence[RegionTargets]
) -> Iterator[None]:
    """Within this context a training step of the composition takes the given anchors and regions.

    Only the choice is given: labels, matched objects and box targets are torchvision's own.

    Args:
        peer: The composition.
        anchors: For each image of the batch.
        regions: For each image of the batch.
    """
    rpn, heads = parts_of(peer)
    sampler = rpn.fg_bg_sampler
    rpn.fg_bg_sampler = partial(_given_anchors, anchors)
    heads.select_training_samples = partial(_given_regions, heads, regions)
    try:
        yield
    finally:
        rpn.fg_bg_sampler = sampler
        del heads.select_training_samples  # the class's method is seen again


def _given_anchors(
    targets: Sequence[AnchorTargets], labels: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Masks of the chosen positives and negatives of each image, as torchvision's sampler gives them."""
    positives, negatives = [], []
    for target, labels_of_image in zip(targets, labels, strict=True):
        for masks, indices in (
            (positives, target.indices[: target.positives]),
            (negatives, target.indices[target.positives :]),
        ):
            mask = torch.zeros_like(labels_of_image, dtype=torch.bool)
            mask[indices] = True
            masks.append(mask)
    return positives, negatives


def _given_regions(
    heads: Any, regions: Sequence[RegionTargets], proposals: list[Tensor], targets: list[dict[str, Tensor]]
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """`RoIHeads.select_training_samples` for chosen regions."""
    chosen = [region.boxes.to(proposals[0].dtype) for region in regions]
    objects = [target["boxes"].to(proposals[0].dtype) for target in targets]
    matches, labels = heads.assign_targets_to_proposals(
        chosen, objects, [target["labels"] for target in targets]
    )
    matched = [
        boxes[match] if len(boxes) else torch.zeros_like(region)
        for boxes, match, region in zip(objects, matches, chosen, strict=True)
    ]
    return chosen, matches, labels, heads.box_coder.encode(matched, chosen)
