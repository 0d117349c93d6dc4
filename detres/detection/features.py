"""What the networks of a test see of pictures: each at its own size, at further scales, mirrored.

A test has members: one network, or the several of an ensemble. A view is a batch of pictures as one member sees it: its
trunk has run once a size, its RPN at its own size, and the view scores whatever regions it is given.

N pictures, R regions, K classes. A member's boxes are in pixels of the picture at that member's own size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from detres.boxes.coding import TargetStds
from detres.data.detection_samples import load_image
from detres.data.preprocessing import to_tensor
from detres.data.records import Annotations
from detres.data.transforms import resize_image
from detres.detection.context import concat_global_context, whole_image_boxes
from detres.detection.faster_rcnn import FasterRCNN, ImageOutputs
from detres.detection.flip import (
    join_mirrored_boxes,
    join_mirrored_outputs,
    with_mirror_images,
    with_mirrored,
)
from detres.detection.roi_head import RegionOutputs, region_outputs
from detres.detection.rpn import ProposalOptions, propose
from detres.detection.tta import pyramid_features, pyramid_sizes

Factor = tuple[float, float]


@dataclass(frozen=True)
class Member:
    """One network of a test, and what its weights say about its use.

    Attributes:
        network: The network in test mode.
        short_side: Pictures are resized to this shorter side,
        long_side: unless the longer side would exceed this.
        proposals: How many proposals it makes, and how.
        target_stds: What its box offsets were divided by in training.
        class_order: Places of the test's classes in its own; None where they are the same.
    """

    network: FasterRCNN
    short_side: int
    long_side: int
    proposals: ProposalOptions
    target_stds: TargetStds
    class_order: tuple[int, ...] | None = None


@dataclass(frozen=True)
class SizedImage:
    """A picture as one member wants it.

    Attributes:
        images: By shorter side (the member's own, and those of the pyramid) the resized picture (3, h, w) uint8 RGB.
        scale: Vertical and horizontal factor from the stored picture to the member's own size.
    """

    images: dict[int, Tensor]
    scale: Factor

    def to(self, device: torch.device) -> SizedImage:
        """The same on another device."""
        return replace(self, images={side: image.to(device) for side, image in self.images.items()})


class SizedImages(Dataset[tuple[int, list[SizedImage]]]):
    """The pictures of a split, each with its place in it and as every member wants it.

    Args:
        annotations: The split.
        sides: Shorter side and limit of the longer side of each member.
        scales: Shorter sides of the pyramid, None for none.
    """

    def __init__(
        self, annotations: Annotations, sides: Sequence[tuple[int, int]], scales: Sequence[int] | None
    ):
        self.annotations, self.sides, self.scales = annotations, list(sides), scales

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int) -> tuple[int, list[SizedImage]]:
        """The picture at `index`.

        Raises:
            DataError: It cannot be read, or its size is not what its annotation says.
        """
        return index, sized_images(load_image(self.annotations, index), self.sides, self.scales)


def sized_images(
    image: np.ndarray, sides: Sequence[tuple[int, int]], scales: Sequence[int] | None
) -> list[SizedImage]:
    """A picture (H, W, 3) uint8 RGB as each member wants it; `sides` and `scales` as in `SizedImages`."""
    height, width = image.shape[:2]
    resized: dict[tuple[int, int], Tensor] = {}  # members may share sizes
    resized_images = []
    for short_side, long_side in sides:
        sizes = pyramid_sizes(height, width, scales, short_side, long_side)
        for size in sizes.values():
            if size not in resized:
                resized[size] = to_tensor(resize_image(image, *size))
        own = sizes[short_side]
        images = {side: resized[size] for side, size in sizes.items()}
        resized_images.append(SizedImage(images, (own[0] / height, own[1] / width)))
    return resized_images


@dataclass(frozen=True)
class View:
    """N pictures through one member's trunk and RPN.

    Attributes:
        member: The member.
        scales: Of each picture, from the stored picture to the member's own size.
        outputs: Trunk and RPN at the member's own size: N images, or 2 N, the mirror images behind.
        maps: For each size that regions are pooled from, smallest first, of each image its map (1, C, h, w).
        factors: For each such size and image the factor from the member's own size.
        flip: Whether there are mirror images.
        context: (N or 2 N, D) global context of each image, None where the network has none.
    """

    member: Member
    scales: list[Factor]
    outputs: list[ImageOutputs]
    maps: list[list[Tensor]]
    factors: list[list[Factor]]
    flip: bool
    context: Tensor | None = None

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each picture at the member's own size."""
        return [output.size for output in self.outputs[: len(self.scales)]]

    @property
    def widths(self) -> list[int]:
        """Of each picture at the member's own size."""
        return [width for _, width in self.sizes]

    def proposals(self) -> list[Tensor]:
        """For each picture its proposals (R, 4) [with those of its mirror image]."""
        options, scales = self.member.proposals, [*self.scales, *self.scales] if self.flip else self.scales
        proposals = [
            propose(output.objectness, output.deltas, output.anchors, output.size, scale, options)
            for output, scale in zip(self.outputs, scales, strict=True)
        ]
        return join_mirrored_boxes(proposals, self.widths) if self.flip else proposals

    def score(self, boxes: Sequence[Tensor]) -> list[RegionOutputs]:
        """For each picture what the region head says of its regions (R, 4) [the mean over both images]."""
        boxes = with_mirrored(boxes, self.widths) if self.flip else list(boxes)
        counts = [len(of_image) for of_image in boxes]
        features = self.features(boxes)
        if self.context is not None:
            features = concat_global_context(features, self.context, counts)
        logits, deltas = self.member.network.region_head.siblings(features)
        if self.member.class_order is not None:
            order = list(self.member.class_order)
            logits, deltas = logits[:, [*order, logits.shape[1] - 1]], deltas[:, order]
        outputs = [
            region_outputs(*of_image, self.member.target_stds)
            for of_image in zip(logits.split(counts), deltas.split(counts), strict=True)
        ]
        return join_mirrored_outputs(outputs) if self.flip else outputs

    def features(self, boxes: Sequence[Tensor]) -> Tensor:
        """Features (R, D) of each image's boxes, in order, merged over two scales where there are several."""
        return pyramid_features(self.member.network.region_head.features, self.maps, self.factors, boxes)


def look(member: Member, inputs: Sequence[SizedImage], scales: Sequence[int] | None, flip: bool) -> View:
    """Run a member's trunk on pictures, once a size [with their mirror images], and its RPN at its own size.

    Args:
        member: The member.
        inputs: As it wants them, on its device.
        scales: Shorter sides that regions are pooled from; None: the member's own.
        flip: Whether each picture's mirror image goes along.
    """

    def images_at(side: int) -> list[Tensor]:
        images = [one.images[side] for one in inputs]
        return with_mirror_images(images) if flip else images

    network, own = member.network, member.short_side
    outputs = network(images_at(own))
    maps, factors = [], []
    for side in scales or (own,):
        images = images_at(side)
        maps.append([output.features for output in outputs] if side == own else network.maps(images))
        factors.append(
            [
                (image.shape[1] / output.size[0], image.shape[2] / output.size[1])
                for image, output in zip(images, outputs, strict=True)
            ]
        )
    view = View(member, [one.scale for one in inputs], outputs, maps, factors, flip)
    if not network.region_head.context:
        return view
    whole = whole_image_boxes([output.size for output in outputs], outputs[0].anchors)
    return replace(view, context=view.features(whole))
