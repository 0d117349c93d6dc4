"""Detectors from their parts: with fresh weights, or from a weights file of ours.

The one place that turns names of the configuration into modules.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from detres.boxes.anchors import cell_anchors
from detres.data.preprocessing import Preprocessing
from detres.detection.config import DetectorArchitecture
from detres.detection.context import check_context
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.roi_head import RoIHead, RoIPooler
from detres.detection.rpn import RPNHead
from detres.networks.norm import freeze_batch_norm
from detres.networks.resnet import build_network, split_network
from detres.weights.checkpoint import Metadata, architecture_of
from detres.weights.loading import load_tensors


def build_detector(
    architecture: DetectorArchitecture, num_classes: int, preprocessing: Preprocessing
) -> FasterRCNN:
    """A detector with fresh weights and frozen BN.

    Args:
        architecture: Its options.
        num_classes: K, without background.
        preprocessing: What its weights expect.
    """
    model, rpn = architecture.model, architecture.rpn
    trunk, body = split_network(build_network(model.network, num_classes))
    freeze_batch_norm(trunk)
    freeze_batch_norm(body)
    pooler = RoIPooler(model.pooler, body.region_size, trunk.stride, model.sampling_ratio, model.aligned)
    cell = cell_anchors(rpn.anchor_sizes, rpn.aspect_ratios)
    return FasterRCNN(
        trunk=trunk,
        rpn=RPNHead(trunk.out_channels, rpn.channels, len(cell)),
        roi_head=RoIHead(body, num_classes, pooler, model.global_context, model.bbox_pred_init),
        cell_anchors=cell,
        preprocessing=preprocessing,
        stride=trunk.stride,
    )


def detector_from_tensors(
    tensors: Mapping[str, Tensor], metadata: Metadata, where: str
) -> tuple[FasterRCNN, DetectorArchitecture]:
    """The detector that a weights file describes, with its tensors, in test mode.

    Args:
        tensors: Of the file.
        metadata: Of the file.
        where: The file, for messages.

    Raises:
        WeightsError: Tensors that do not fit the file's own architecture.
    """
    architecture = architecture_of(metadata, DetectorArchitecture, where)
    network = build_detector(architecture, len(metadata.class_names), metadata.preprocessing)
    check_context(tensors, network.state_dict(), where)
    load_tensors(network, tensors, where=where)
    return network.eval(), architecture
