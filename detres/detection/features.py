"""One image through one network of a test: trunk and RPN, once per size, also mirrored; then any regions it is given.

A test has members: one network, or the several of an ensemble. Three frames of coordinates have names: `original`
pixels, `reference` (the first member's input) and `input` (of the member at hand, at its own size).

V views of an image: the image, then its mirror image where there is one; R regions; K classes; D channels of a feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, device
from torch.utils.data import Dataset

from detres.data.detection_samples import load_image
from detres.data.preprocessing import to_tensor
from detres.data.records import Annotations
from detres.data.transforms import resize_image
from detres.detection.config import DetectionTestConfig, DetectorArchitecture
from detres.detection.context import concat_global_context, pool_global_context
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.roi_head import RegionPredictions, region_predictions
from detres.detection.rpn import ImageOutputs, propose
from detres.detection.tta import (
    join_mirrored_boxes,
    join_mirrored_predictions,
    pyramid_features,
    pyramid_sizes,
    with_mirror_image,
    with_mirrored_boxes,
)


@dataclass(frozen=True)
class DetectorMember:
    """One network of a test, and what its weights file says about its use.

    Attributes:
        network: In test mode, on its device.
        architecture: Its options.
        short_side: Images are resized to this shorter side,
        long_side: unless the longer side would exceed this.
        class_order: Positions of the test's classes among its own; None where they are the same.
    """

    network: FasterRCNN
    architecture: DetectorArchitecture
    short_side: int
    long_side: int
    class_order: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ResizedImage:
    """An image as one member takes it.

    Attributes:
        images: By shorter side (the member's own, and those of the pyramid) the resized image (3, h, w) uint8 RGB.
        scale: Vertical and horizontal factor from the original image to the member's input.
    """

    images: dict[int, Tensor]
    scale: tuple[float, float]

    def to(self, place: device) -> ResizedImage:
        """The same on another device."""
        return replace(self, images={side: image.to(place) for side, image in self.images.items()})


def resize_for_members(
    image: np.ndarray, members: Sequence[DetectorMember], scales: Sequence[int] | None
) -> list[ResizedImage]:
    """An image (H, W, 3) uint8 RGB as each member takes it; `scales` are the pyramid's shorter sides."""
    return resize_to_sides(image, [(member.short_side, member.long_side) for member in members], scales)


def resize_to_sides(
    image: np.ndarray, sides: Sequence[tuple[int, int]], scales: Sequence[int] | None
) -> list[ResizedImage]:
    """As `resize_for_members`, for members of these shorter sides and limits of the longer side."""
    height, width = image.shape[:2]
    by_size: dict[tuple[int, int], Tensor] = {}  # members may share sizes
    resized = []
    for short_side, long_side in sides:
        sizes = pyramid_sizes(height, width, scales, short_side, long_side)
        for size in sizes.values():
            if size not in by_size:
                by_size[size] = to_tensor(resize_image(image, *size))
        own = sizes[short_side]
        images = {side: by_size[size] for side, size in sizes.items()}
        resized.append(ResizedImage(images, (own[0] / height, own[1] / width)))
    return resized


class EvalImages(Dataset[tuple[int, list[ResizedImage]]]):
    """The images of a split, each with its index and as every member takes it.

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

    def __getitem__(self, index: int) -> tuple[int, list[ResizedImage]]:
        """The image at `index`.

        Raises:
            DataError: It cannot be read, or its size is not what its annotation says.
        """
        return index, resize_to_sides(load_image(self.annotations, index), self.sides, self.scales)


@dataclass(frozen=True)
class ImageFeatures:
    """One image through one member's trunk and RPN.

    Attributes:
        member: The member.
        scale: From the original image to the member's input.
        outputs: Trunk and RPN at the member's own size, of each view.
        maps: For each size that regions are pooled from, smallest first, of each view its map (1, C, h, w).
        factors: For each such size the factor from the member's own size.
        context: (V, D) global context of each view, None where the network has none.
    """

    member: DetectorMember
    scale: tuple[float, float]
    outputs: list[ImageOutputs]
    maps: list[list[Tensor]]
    factors: list[tuple[float, float]]
    context: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the member's input."""
        return self.outputs[0].size

    @property
    def is_mirrored(self) -> bool:
        """Whether the mirror image is a second view."""
        return len(self.outputs) == 2

    def propose(self, test: DetectionTestConfig) -> Tensor:
        """The proposals (R, 4) [united with those of the mirror image], in pixels of the member's input."""
        rpn = self.member.architecture.rpn
        proposals = [propose(output, self.scale, rpn, test) for output in self.outputs]
        return join_mirrored_boxes(proposals, self.size[1]) if self.is_mirrored else proposals[0]

    def predict(self, regions: Tensor) -> RegionPredictions:
        """What the head says of regions (R, 4) in pixels of the member's input [the mean over both views]."""
        boxes = with_mirrored_boxes(regions, self.size[1]) if self.is_mirrored else [regions]
        counts = [len(regions)] * len(boxes)
        features = self.region_features(boxes)
        if self.context is not None:
            features = concat_global_context(features, self.context, counts)
        logits, deltas = self.member.network.roi_head.box_predictor(features)
        if self.member.class_order is not None:
            order = list(self.member.class_order)
            logits, deltas = logits[:, [*order, logits.shape[1] - 1]], deltas[:, order]
        stds = self.member.architecture.rcnn.target_stds
        predictions = [
            region_predictions(view_logits, view_deltas, stds)
            for view_logits, view_deltas in zip(logits.split(counts), deltas.split(counts), strict=True)
        ]
        return join_mirrored_predictions(predictions) if self.is_mirrored else predictions[0]

    def region_features(self, boxes: Sequence[Tensor]) -> Tensor:
        """Features (R, D) of each view's boxes, in order; the maximum over two scales where there are several."""
        head = self.member.network.roi_head
        return pyramid_features(head.region_features, self.maps, self.factors, boxes)


def extract_features(
    member: DetectorMember, image: ResizedImage, scales: Sequence[int] | None, flip: bool
) -> ImageFeatures:
    """Run a member's trunk on an image, once per size [with its mirror image], and its RPN at its own size.

    Args:
        member: The member.
        image: As it takes it, on its device.
        scales: Shorter sides that regions are pooled from; None: the member's own.
        flip: Whether the mirror image goes along.
    """

    def views_at(side: int) -> list[Tensor]:
        return with_mirror_image(image.images[side]) if flip else [image.images[side]]

    network, own = member.network, member.short_side
    outputs = network(views_at(own))
    maps, factors = [], []
    for side in scales or (own,):
        views = views_at(side)
        maps.append([output.features for output in outputs] if side == own else network.maps(views))
        height, width = views[0].shape[1:]
        factors.append((height / outputs[0].size[0], width / outputs[0].size[1]))
    features = ImageFeatures(member, image.scale, outputs, maps, factors)
    if not network.roi_head.global_context:
        return features
    sizes = [output.size for output in outputs]
    return replace(features, context=pool_global_context(features.region_features, sizes, outputs[0].anchors))
