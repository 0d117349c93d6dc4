"""Calling the composition as ours is called: its forms of pictures, objects, losses and detections.

Ren et al. 2015, §3.3. Torchvision knows one smallest side of proposals, in pixels of its input; ours is in pixels of
the original picture, and each picture has a factor of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.ops import clip_boxes_to_image

from benchmarks.peers.composition import parts_of
from detres.boxes.geometry import boxes_at_least
from detres.detection.postprocess import Detections

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
        scales: For each image the (vertical, horizontal) factor from the original picture (see `smallest_proposals`);
            None where the composition was made with one for all.
    """
    with smallest_proposals(peer, scales):
        losses = peer(list(images), targets)
    return {name.removeprefix("loss_"): loss for name, loss in losses.items()}


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


@contextmanager
def smallest_proposals(peer: TorchvisionFasterRCNN, scales: Scales | None) -> Iterator[None]:
    """Within this context the smallest side of proposals is in pixels of each original picture, as ours is.

    Args:
        peer: The composition, made with `scale=1`.
        scales: For each image of the batch its (vertical, horizontal) factor; None changes nothing.
    """
    if scales is None:
        yield
        return
    rpn, _ = parts_of(peer)
    min_size = rpn.min_size
    rpn.filter_proposals = partial(_filter_proposals, rpn.filter_proposals, scales, min_size)
    rpn.min_size = 0.0
    try:
        yield
    finally:
        rpn.min_size = min_size
        del rpn.filter_proposals  # the class's method is seen again


def _filter_proposals(
    method: Any,
    scales: Scales,
    min_size: float,
    proposals: Tensor,
    objectness: Tensor,
    image_shapes: list[tuple[int, int]],
    num_anchors_per_level: list[int],
) -> tuple[list[Tensor], list[Tensor]]:
    """`RegionProposalNetwork.filter_proposals` that drops, after clipping, what is small in the original picture.

    Proposals (N, A, 4). Dropped ones become inside out: torchvision then drops them for a negative side.
    """
    kept = []
    for boxes, shape, (vertical, horizontal) in zip(proposals, image_shapes, scales, strict=True):
        clipped = clip_boxes_to_image(boxes, shape)
        large = boxes_at_least(clipped, min_size * vertical, min_size * horizontal)
        kept.append(torch.where(large[:, None], clipped, clipped.new_tensor([1, 1, 0, 0])))
    return method(torch.stack(kept), objectness, image_shapes, num_anchors_per_level)
