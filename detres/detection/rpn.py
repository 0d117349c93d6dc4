"""Region proposal network: its head on the shared map, and proposals from its outputs (Ren et al. 2015, §3.1).

A anchors a position, h x w positions, P proposals. Boxes are xyxy in pixels of the network's input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detres.boxes.coding import decode_boxes
from detres.boxes.geometry import boxes_at_least, clip_boxes
from detres.boxes.nms import nms


class RPNHead(nn.Module):
    """3x3 convolution with ReLU, then 1x1 convolutions for objectness and box deltas of every anchor.

    Args:
        in_channels: Channels of the shared map.
        channels: Channels of the 3x3 convolution (512; Ren et al. 2015).
        anchors: A, anchors a position.
    """

    def __init__(self, in_channels: int, channels: int, anchors: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, anchors, 1)
        self.deltas = nn.Conv2d(channels, anchors * 4, 1)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs in the order of `grid_anchors`: row, column, anchor.

        Args:
            features: (N, C, h, w).

        Returns:
            Objectness logits (N, h * w * A) and deltas (N, h * w * A, 4), in float32 at least.
        """
        # At test in bf16 the 1x1 layers stay in float32: logits of eight bits would tie, and ties are kept by place.
        hidden = self.conv(features).relu_().to(self.objectness.weight.dtype)
        objectness = self.objectness(hidden).permute(0, 2, 3, 1).flatten(1)  # (N, h * w * A)
        deltas = self.deltas(hidden).permute(0, 2, 3, 1).reshape(len(features), -1, 4)  # (N, h * w * A, 4)
        precision = torch.promote_types(features.dtype, torch.float32)  # bf16 goes up, float64 stays
        return objectness.to(precision), deltas.to(precision)


@dataclass(frozen=True)
class ProposalOptions:
    """How many proposals an image gives.

    Attributes:
        before_nms: The best this many anchors are decoded.
        after_nms: The best this many survivors are kept.
        nms: IoU above which a worse proposal is dropped.
        min_size: Proposals with a side under this many pixels of the original picture are dropped.
    """

    before_nms: int
    after_nms: int
    nms: float
    min_size: float


@torch.no_grad()
def propose(
    objectness: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    image_size: tuple[int, int],
    scale: tuple[float, float],
    options: ProposalOptions,
) -> Tensor:
    """Proposals of one image, best first; no gradient flows through them.

    Args:
        objectness: (h * w * A,) logits.
        deltas: (h * w * A, 4).
        anchors: (h * w * A, 4).
        image_size: Height and width of the network's input.
        scale: Vertical and horizontal factor from the original picture to the input.
        options: See `ProposalOptions`.

    Returns:
        (P, 4) clipped to the image, P <= options.after_nms.
    """
    height, width = image_size
    scores, best = objectness.topk(min(options.before_nms, len(objectness)))
    proposals = clip_boxes(decode_boxes(deltas[best], anchors[best]), height, width)
    large = boxes_at_least(proposals, options.min_size * scale[0], options.min_size * scale[1])
    proposals, scores = proposals[large], scores[large]
    return proposals[nms(proposals, scores, options.nms, options.after_nms)]
