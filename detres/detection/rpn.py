"""Region proposal network: its layers on the shared map, and the proposals that its outputs give.

Ren et al. 2015, §3.1. A anchors per position, h x w positions, P proposals. Boxes are xyxy in pixels of the network's
input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detres.boxes.coding import decode_boxes
from detres.boxes.geometry import boxes_at_least, clip_boxes
from detres.boxes.nms import nms
from detres.detection.config import DetectionTestConfig, RPNConfig


class RPNHead(nn.Module):
    """3x3 convolution with ReLU, then 1x1 convolutions for objectness and box deltas of every anchor.

    Args:
        in_channels: Channels of the shared map.
        channels: Channels of the 3x3 convolution (512; Ren et al. 2015).
        anchors: A, anchors per position.
    """

    def __init__(self, in_channels: int, channels: int, anchors: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.cls_logits = nn.Conv2d(channels, anchors, 1)
        self.bbox_pred = nn.Conv2d(channels, anchors * 4, 1)
        for layer in (self.conv, self.cls_logits, self.bbox_pred):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs in the order of `grid_anchors`: row, column, anchor.

        Args:
            features: (N, C, h, w).

        Returns:
            Objectness logits (N, h * w * A) and deltas (N, h * w * A, 4), at least float32.
        """
        # In a bfloat16 test the 1x1 layers stay float32: logits of eight bits would tie, and ties are kept by position.
        hidden = self.conv(features).relu_().to(self.cls_logits.weight.dtype)
        objectness = self.cls_logits(hidden).permute(0, 2, 3, 1).flatten(1)  # (N, h * w * A)
        deltas = self.bbox_pred(hidden).permute(0, 2, 3, 1).reshape(len(features), -1, 4)  # (N, h * w * A, 4)
        precision = torch.promote_types(
            features.dtype, torch.float32
        )  # bfloat16 becomes float32, float64 stays
        return objectness.to(precision), deltas.to(precision)


@dataclass(frozen=True)
class ImageOutputs:
    """The outputs of trunk and RPN for one image.

    Attributes:
        features: (1, C, h, w), the shared map.
        objectness: (h * w * A,) logits.
        deltas: (h * w * A, 4).
        anchors: (h * w * A, 4), pixels of the network's input.
        size: Height and width of the input.
    """

    features: Tensor
    objectness: Tensor
    deltas: Tensor
    anchors: Tensor
    size: tuple[int, int]


@torch.no_grad()
def propose(
    outputs: ImageOutputs, scale: tuple[float, float], rpn: RPNConfig, limits: RPNConfig | DetectionTestConfig
) -> Tensor:
    """Proposals of one image, best first; no gradient flows through them.

    Args:
        outputs: Of the image.
        scale: Vertical and horizontal factor from the original image to the input.
        rpn: Its `nms_thresh` and `min_size`, the latter in pixels of the original image.
        limits: Its `pre_nms_top_n` and `proposals`: `rpn` itself in training, the section `test` at test.

    Returns:
        (P, 4) clipped to the image, P <= limits.proposals.
    """
    height, width = outputs.size
    scores, best = outputs.objectness.topk(min(limits.pre_nms_top_n, len(outputs.objectness)))
    proposals = clip_boxes(decode_boxes(outputs.deltas[best], outputs.anchors[best]), height, width)
    large = boxes_at_least(proposals, rpn.min_size * scale[0], rpn.min_size * scale[1])
    proposals, scores = proposals[large], scores[large]
    return proposals[nms(proposals, scores, rpn.nms_thresh, limits.proposals)]
