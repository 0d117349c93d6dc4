"""Faster R-CNN on conv4_x: shared trunk, region proposal network, region head (He et al. 2015, Appendix A).

N images of one size (H, W), A anchors, h x w positions of the map, stride 16.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detres.boxes.anchors import grid_anchors
from detres.data.preprocessing import Preprocessing, normalize
from detres.detection.roi_head import RoIHead
from detres.detection.rpn import ImageOutputs, RPNHead
from detres.networks.resnet import Trunk
from detres.networks.vgg import VGGTrunk


class FasterRCNN(nn.Module):
    """The detector's network; it samples, matches and suppresses nothing.

    Weights and maps lie channels-last in memory, because convolutions are faster there and RoIAlign reads a position's
    channels in one piece.

    Args:
        trunk: conv1..conv4_x: (N, 3, H, W) -> (N, C, h, w).
        rpn: The RPN's head.
        roi_head: Pooling, conv5_x, class and box layers: (maps, boxes of each image) -> (class logits, deltas).
        cell_anchors: (A, 4) from `boxes.anchors.cell_anchors`.
        preprocessing: What the trunk's weights expect.
        stride: Input pixels a position of the map.
    """

    cell_anchors: Tensor

    def __init__(
        self,
        trunk: Trunk | VGGTrunk,
        rpn: RPNHead,
        roi_head: RoIHead,
        cell_anchors: Tensor,
        preprocessing: Preprocessing,
        stride: int = 16,
    ):
        super().__init__()
        self.trunk = trunk
        self.rpn = rpn
        self.roi_head = roi_head
        self.preprocessing = preprocessing
        self.stride = stride
        self.register_buffer("cell_anchors", cell_anchors, persistent=False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def dtype(self) -> torch.dtype:
        """Of the trunk's weights; boxes are in that of the anchors."""
        return next(self.trunk.parameters()).dtype

    def forward(self, images: Sequence[Tensor]) -> list[ImageOutputs]:
        """Trunk and RPN of images that may differ in size.

        Images of one size go through together, others separately. Nothing is padded, so that an image's maps are those
        of the image alone (with padding, frozen BN's offset would fill the border with values that leak inwards).

        Args:
            images: Each (3, H, W) uint8 RGB.
        """
        outputs: dict[int, ImageOutputs] = {}
        for indices in _same_size(images):
            features = self._run_trunk([images[i] for i in indices])
            objectness, deltas = self.rpn(features)
            anchors = grid_anchors(self.cell_anchors, features.shape[2], features.shape[3], self.stride)
            for row, index in enumerate(indices):
                height, width = images[index].shape[-2:]
                outputs[index] = ImageOutputs(
                    features[row : row + 1], objectness[row], deltas[row], anchors, (height, width)
                )
        return [outputs[index] for index in range(len(images))]

    def maps(self, images: Sequence[Tensor]) -> list[Tensor]:
        """The shared maps (1, C, h, w) alone, without the RPN; images as in `forward`."""
        maps: dict[int, Tensor] = {}
        for indices in _same_size(images):
            features = self._run_trunk([images[i] for i in indices])
            maps.update(zip(indices, features.split(1), strict=True))
        return [maps[index] for index in range(len(images))]

    def _run_trunk(self, images: Sequence[Tensor]) -> Tensor:
        """The maps (N, C, h, w) of images of one size."""
        inputs = normalize(torch.stack(list(images)), self.preprocessing, self.cell_anchors.dtype)
        return self.trunk(inputs.to(self.dtype, memory_format=torch.channels_last))


def _same_size(images: Sequence[Tensor]) -> list[list[int]]:
    """Indices of the images, grouped by (H, W), in order of first appearance."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(tuple(image.shape[-2:]), []).append(index)
    return list(groups.values())
