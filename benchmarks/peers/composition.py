"""The peer: Faster R-CNN C4 composed of torchvision's own classes, on the weights of a detector of ours.

What detres is measured against, in results and in time (He et al. 2015, Appendix A; Ren et al. 2015). K classes; in
torchvision background is class 0 and has box deltas too, here it is the last, K, and has none.

What the composition cannot be told and stays torchvision's: smooth L1 turns at 1/9 in both stages (ours:
`smooth_l1_beta`), losses are averages over the references of the whole batch (ours: of each image, equal where all
images have as many), anchors that cross the border take part (unless the samples are given), no `bg_iou_thresh_lo`, and
images of different sizes are padded.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import vgg
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import (
    Conv2dNormActivation,
    FrozenBatchNorm2d,
    MultiScaleRoIAlign,
    roi_align,
    roi_pool,
)

from detres.data.preprocessing import Preprocessing
from detres.detection.config import (
    DetectionModelConfig,
    DetectionTestConfig,
    DetectorArchitecture,
    RCNNConfig,
    RPNConfig,
)
from detres.detection.faster_rcnn import FasterRCNN
from detres.errors import ConfigError
from detres.networks.config import NetworkConfig, scale_channels
from detres.networks.resnet import TRUNK_STRIDE, NetworkPlan, plan_network

PEER_NETWORKS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vgg16", "vgg19")
# Prefix of a tensor's name here -> in the composition.
PREFIXES = {
    "trunk.": "backbone.",
    "rpn.conv.": "rpn.head.conv.0.0.",
    "rpn.cls_logits.": "rpn.head.cls_logits.",
    "rpn.bbox_pred.": "rpn.head.bbox_pred.",
    "roi_head.body.": "roi_heads.box_head.",
    "roi_head.box_predictor.": "roi_heads.box_predictor.",
}


def torchvision_faster_rcnn(
    network: FasterRCNN,
    architecture: DetectorArchitecture,
    test: DetectionTestConfig,
    *,
    sizes: tuple[int, int] | None = None,
    scale: float = 1.0,
) -> TorchvisionFasterRCNN:
    """The composition with the weights, constants, mode, device and dtype of `network`.

    Args:
        network: A detector of ours on a ResNet or VGG.
        architecture: What it was built from.
        test: Its test options.
        sizes: Shorter side and limit of the longer side to resize to; None: images come resized.
        scale: Factor from the original pictures to the images, where it is one for all and calls do not give each
            image's own: torchvision's smallest proposal is one number of input pixels, `rpn.min_size * scale`.

    Returns:
        Takes `peer_images` and, in training, `peer_targets`.

    Raises:
        ConfigError: A network, or an addition to it or to the test, that torchvision does not have.
    """
    added = [name for name in ("refine", "box_voting", "flip", "scales") if getattr(test, name)]
    model, rpn_config, rcnn = architecture.model, architecture.rpn, architecture.rcnn
    if model.global_context or added:
        key = "model.global_context" if model.global_context else f"test.{added[0]}"
        raise ConfigError(f"{key}: torchvision's composition has nothing like it; leave it out for the peer")
    hidden, channels = network.rpn.conv.out_channels, network.rpn.conv.in_channels
    pooler, outputs = network.roi_head.pooler, network.roi_head.box_predictor.cls_score
    with torch.device("meta"):  # no fresh weights: they are copied
        backbone, head = _trunk_and_head(model.network)
        rpn_head = _rpn_head(channels, hidden, len(network.cell_anchors))
        predictor = FastRCNNPredictor(outputs.in_features, outputs.out_features)
    peer = TorchvisionFasterRCNN(
        backbone,
        rpn_anchor_generator=_Anchors(rpn_config, network.cell_anchors),
        rpn_head=rpn_head,
        rpn_nms_thresh=rpn_config.nms_thresh,
        rpn_pre_nms_top_n_test=test.pre_nms_top_n,
        rpn_post_nms_top_n_test=test.proposals,
        box_roi_pool=MultiScaleRoIAlign(["0"], pooler.output_size, model.sampling_ratio),
        box_head=head,
        box_predictor=predictor,
        bbox_reg_weights=tuple(1 / std for std in rcnn.target_stds),
        box_score_thresh=test.score_thresh,
        box_nms_thresh=test.nms_thresh,
        box_detections_per_img=test.detections_per_img,
        **_training_constants(rpn_config, rcnn),
    )
    peer.transform = _Transform(network.preprocessing, sizes)
    rpn, heads = parts_of(peer)
    rpn.min_size = rpn_config.min_size * scale
    if model.pooler == "roi_pool" or model.aligned:
        heads.box_roi_pool = _OneMapPooling(model, pooler.output_size)
    for module in (rpn_head, predictor):
        module.register_forward_hook(_at_least_float32)
    weights = {name: tensor.clone() for name, tensor in torchvision_names(network.state_dict()).items()}
    peer.load_state_dict(weights, assign=True)
    for name, parameter in network.named_parameters():
        peer.get_parameter(_renamed(name)).requires_grad_(parameter.requires_grad)
    return peer.train(network.training)


def torchvision_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a detector (weights, or gradients by name) under the composition's names and in its class order.

    Args:
        tensors: By the names of `FasterRCNN.state_dict()`.

    Returns:
        Background's row of the class layer comes first; its box deltas, which we do not have, are zeros.
    """
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith("roi_head.box_predictor.cls_score."):
            tensor = torch.cat((tensor[-1:], tensor[:-1]))
        if name.startswith("roi_head.box_predictor.bbox_pred."):
            tensor = torch.cat((torch.zeros_like(tensor[:4]), tensor))
        renamed[_renamed(name)] = tensor
    return renamed


class _Anchors(AnchorGenerator):
    """Torchvision's generator with our cell anchors (its own are rounded), in float32 whatever the maps are in."""

    def __init__(self, rpn: RPNConfig, cell: Tensor):
        super().__init__((rpn.anchor_sizes,), (rpn.aspect_ratios,))
        self.cell_anchors = [cell]

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        super().set_cell_anchors(torch.promote_types(dtype, torch.float32), device)


class _Transform(GeneralizedRCNNTransform):
    """Torchvision's transform with our preprocessing of images in 0..1, and no resizing where no sizes are given."""

    def __init__(self, preprocessing: Preprocessing, sizes: tuple[int, int] | None):
        mean = [value / preprocessing.value_range for value in preprocessing.mean]
        std = [value / preprocessing.value_range for value in preprocessing.std]
        short_side, long_side = sizes or (0, 0)
        super().__init__(short_side, long_side, mean, std)
        self.resizes = sizes is not None
        self.flips_channels = preprocessing.channel_order == "BGR"

    def normalize(self, image: Tensor) -> Tensor:
        return super().normalize(image.flip(0) if self.flips_channels else image)

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        return super().resize(image, target) if self.resizes else (image, target)


class _OneMapPooling(nn.Module):
    """RoI max pooling or shifted RoIAlign in the place of `MultiScaleRoIAlign`, by torchvision's operators."""

    def __init__(self, model: DetectionModelConfig, cells: int):
        super().__init__()
        self.cells = cells
        self.pool = roi_pool
        if model.pooler == "roi_align":
            self.pool = partial(roi_align, sampling_ratio=model.sampling_ratio, aligned=model.aligned)

    def forward(
        self, maps: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        return self.pool(maps["0"], boxes, output_size=self.cells, spatial_scale=1 / TRUNK_STRIDE)


def _trunk_and_head(config: NetworkConfig) -> tuple[nn.Sequential, nn.Sequential]:
    """Torchvision's ResNet to layer3, and layer4 with average pooling, in the form that `config` describes.

    Of VGG the layers to conv5_3, and fc6 and fc7.
    """
    if config.name not in PEER_NETWORKS or config.shortcut != "B":
        raise ConfigError(
            f"torchvision has no {config.name} with shortcut {config.shortcut}:"
            f" the peer is one of {', '.join(PEER_NETWORKS)} with shortcut B"
        )
    if config.name.startswith("vgg"):
        return _vgg_trunk_and_head(config)
    norm = partial(FrozenBatchNorm2d, eps=config.eps)
    resnet: Any = torchvision.models.get_model(config.name, weights=None, norm_layer=norm)
    if config.width != 1:
        _change_width(resnet, plan_network(config.name, config.width))
    if config.pool == "caffe":
        resnet.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
    if config.stride_in == "1x1":
        for stage in (resnet.layer2, resnet.layer3, resnet.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    backbone, head = nn.Sequential(), nn.Sequential()
    for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3"):
        backbone.add_module(name, resnet.get_submodule(name))
    backbone.out_channels = resnet.layer4[0].conv1.in_channels  # type: ignore[assignment]
    head.add_module("layer4", resnet.layer4)
    head.add_module("pool", nn.AdaptiveAvgPool2d(1))
    return backbone, head


def _vgg_trunk_and_head(config: NetworkConfig) -> tuple[nn.Sequential, nn.Sequential]:
    """Torchvision's `features[:-1]` and `classifier[:-1]`, narrow where `config` says so."""
    whole: Any = torchvision.models.get_model(config.name, weights=None)
    plan: list[str | int] = []
    for layer in whole.features:
        if isinstance(layer, nn.Conv2d):
            plan.append(scale_channels(layer.out_channels, config.width))
        elif isinstance(layer, nn.MaxPool2d):
            plan.append("M")
    features: Any = vgg.make_layers(plan)[:-1]  # type: ignore[arg-type]
    classifier = whole.classifier[:-1]
    for layer in features:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = config.pool == "caffe"
    channels, hidden = int(plan[-2]), scale_channels(classifier[3].out_features, config.width)
    classifier[0], classifier[3] = nn.Linear(channels * 7 * 7, hidden), nn.Linear(hidden, hidden)
    backbone, head = nn.Sequential(), nn.Sequential(nn.Flatten())
    backbone.add_module("features", features)
    backbone.out_channels = channels  # type: ignore[assignment]
    head.add_module("classifier", classifier)
    return backbone, head


def _change_width(resnet: Any, plan: NetworkPlan) -> None:
    """Replace stem and stages of torchvision's ResNet by those of another width, made as its constructor does."""
    block, norm, channels = type(resnet.layer1[0]), resnet._norm_layer, plan.channels
    resnet.inplanes = channels[0]
    resnet.conv1 = nn.Conv2d(3, channels[0], kernel_size=7, stride=2, padding=3, bias=False)
    resnet.bn1 = norm(channels[0])
    for number, blocks in enumerate(plan.blocks):
        stage = resnet._make_layer(block, channels[number], blocks, stride=1 if number == 0 else 2)
        resnet.add_module(f"layer{number + 1}", stage)


def parts_of(peer: TorchvisionFasterRCNN) -> tuple[Any, Any]:
    """Its RPN and its region heads; what they hold torchvision does not declare."""
    return peer.rpn, peer.roi_heads


def _rpn_head(channels: int, hidden: int, anchors: int) -> RPNHead:
    """Torchvision's head, whose 3x3 convolution has as many channels as the map unless it is replaced."""
    head = RPNHead(hidden, anchors)
    head.conv = nn.Sequential(Conv2dNormActivation(channels, hidden, kernel_size=3, norm_layer=None))
    return head


def _training_constants(rpn: RPNConfig, rcnn: RCNNConfig) -> dict[str, Any]:
    return {
        "rpn_pre_nms_top_n_train": rpn.pre_nms_top_n,
        "rpn_post_nms_top_n_train": rpn.proposals,
        "rpn_fg_iou_thresh": rpn.fg_iou_thresh,
        "rpn_bg_iou_thresh": rpn.bg_iou_thresh,
        "rpn_batch_size_per_image": rpn.batch_size_per_image,
        "rpn_positive_fraction": rpn.positive_fraction,
        "box_fg_iou_thresh": rcnn.fg_iou_thresh,
        "box_bg_iou_thresh": rcnn.bg_iou_thresh,
        "box_batch_size_per_image": rcnn.batch_size_per_image,
        "box_positive_fraction": rcnn.positive_fraction,
    }


def _at_least_float32(module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> Any:
    """A head's outputs out of autocast's bfloat16: torchvision would go on to decode boxes in it."""
    if isinstance(outputs, Tensor):
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    return type(outputs)(_at_least_float32(module, inputs, output) for output in outputs)


def _renamed(name: str) -> str:
    prefix = next(prefix for prefix in PREFIXES if name.startswith(prefix))
    return PREFIXES[prefix] + name.removeprefix(prefix)
