"""Calling the composition as ours is called: its forms of images, objects, losses and detections, and our samples.

Ren et al. 2015, §3.3. Torchvision knows one smallest side of proposals, in pixels of its input; ours is in pixels of
the original image, and each image has a factor of its own. Losses can be compared only on the same sampled anchors and
regions (Girshick 2015, §2.3; Ren et al. 2015, §3.1.3). K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.ops import clip_boxes_to_image

from benchmarks.peers.composition import parts_of
from detres.boxes.geometry import boxes_at_least
from detres.data.detection_samples import DetectionSample
from detres.detection.config import RCNNConfig, RPNConfig
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.postprocess import Detections
from detres.detection.rpn import propose
from detres.detection.targets import AnchorTargets, RegionTargets, sample_anchors, sample_regions

Scales = Sequence[tuple[float, float]]


def peer_losses(
    peer: TorchvisionFasterRCNN,
    images: Sequence[Tensor],
    targets: list[dict[str, Tensor]],
    scales: Scales | None = None,
) -> dict[str, Tensor]:
    """The composition's losses of a training step under our names, which are torchvision's without `loss_`.

    Args:
        peer: In training mode.
        images: From `peer_images`.
        targets: From `peer_targets`.
        scales: For each image the (vertical, horizontal) factor from the original image (see `smallest_proposals`);
            None where the images are the originals.
    """
    with smallest_proposals(peer, scales):
        losses = peer(list(images), targets)
    return {name.removeprefix("loss_"): loss for name, loss in losses.items()}


def sample_losses(
    peer: TorchvisionFasterRCNN, samples: Sequence[DetectionSample], *, each_scale: bool = False
) -> dict[str, Tensor]:
    """`peer_losses` of samples on its device; with `each_scale` images need not be the originals."""
    targets = peer_targets([sample.boxes for sample in samples], [sample.labels for sample in samples])
    images = peer_images([sample.image for sample in samples])
    scales = [sample.scale for sample in samples] if each_scale else None
    return peer_losses(peer, images, targets, scales)


@torch.inference_mode()
def peer_detections(
    peer: TorchvisionFasterRCNN, images: Sequence[Tensor], scales: Scales | None = None
) -> list[Detections]:
    """The composition's detections in images from `peer_images`, labels 0..K-1, boxes in pixels of those images.

    Args:
        peer: In test mode.
        images: From `peer_images`.
        scales: As for `peer_losses`.
    """
    with smallest_proposals(peer, scales):
        return [
            Detections(found["boxes"], found["scores"], found["labels"] - 1) for found in peer(list(images))
        ]


def peer_images(images: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Images (3, H, W) uint8 RGB in the form that the composition takes: floating, 0 to 1."""
    return [image.to(dtype) / 255 for image in images]


def peer_targets(boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """Objects (G, 4) and (G,) int64 in 0..K-1 of each image in the form that the composition takes: 1..K."""
    return [{"boxes": b, "labels": label + 1} for b, label in zip(boxes, labels, strict=True)]


def smallest_proposals(peer: TorchvisionFasterRCNN, scales: Scales | None) -> AbstractContextManager[Any]:
    """Within this context the smallest side of proposals is in pixels of each original image, as ours is.

    `scales` has for each image of the batch its (vertical, horizontal) factor; None changes nothing.
    """
    if scales is None:
        return nullcontext()
    rpn, _ = parts_of(peer)
    drop_small = partial(_filter_proposals, rpn.filter_proposals, scales, rpn.min_size)
    return patch.multiple(rpn, filter_proposals=drop_small, min_size=0.0)


def _filter_proposals(
    method: Any,
    scales: Scales,
    min_size: float,
    proposals: Tensor,
    objectness: Tensor,
    image_shapes: list[tuple[int, int]],
    num_anchors_per_level: list[int],
) -> tuple[list[Tensor], list[Tensor]]:
    """`RegionProposalNetwork.filter_proposals` that drops, after clipping, what is small in the original image.

    Proposals (N, A, 4). Dropped ones become inside out: torchvision then drops them for a negative side.
    """
    kept = []
    for boxes, shape, (vertical, horizontal) in zip(proposals, image_shapes, scales, strict=True):
        clipped = clip_boxes_to_image(boxes, shape)
        large = boxes_at_least(clipped, min_size * vertical, min_size * horizontal)
        kept.append(torch.where(large[:, None], clipped, clipped.new_tensor([1, 1, 0, 0])))
    return method(torch.stack(kept), objectness, image_shapes, num_anchors_per_level)


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
    """
    rpn, heads = parts_of(peer)
    select = partial(_given_regions, heads, regions)
    with (
        patch.object(rpn, "fg_bg_sampler", partial(_given_anchors, anchors)),
        patch.object(heads, "select_training_samples", select),
    ):
        yield


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
