"""Weights files of networks that are quick and answer lively, for tests of what uses weights files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from detres.classification.classifier import build_classifier, write_classifier
from detres.classification.config import ClassifierArchitecture
from detres.data.config import CropConfig
from detres.data.preprocessing import TORCHVISION
from detres.data.shape_forms import SHAPE_CLASSES
from detres.detection.build import build_detector, detector_from_tensors
from detres.detection.config import DetectionModelConfig, DetectorArchitecture, RCNNConfig, RPNConfig
from detres.detection.faster_rcnn import FasterRCNN
from detres.networks.config import NetworkConfig
from detres.weights.checkpoint import Metadata, read_weights, save_weights

SHORT_SIDE, LONG_SIDE = 96, 160
NETWORK = NetworkConfig.model_validate({"name": "resnet18", "width": 0.25})


def write_detector(
    path: Path,
    class_names: Sequence[str] = SHAPE_CLASSES,
    *,
    category_ids: tuple[int, ...] | None = None,
    test: dict[str, object] | None = None,
    seed: int = 0,
    network_config: NetworkConfig = NETWORK,
    context: bool = False,
    sides: tuple[int, int] = (SHORT_SIDE, LONG_SIDE),
) -> Path:
    """A detector of random weights whose logits and offsets spread as a trained one's do."""
    architecture = DetectorArchitecture(
        model=DetectionModelConfig(network=network_config, pooler="roi_align", global_context=context),
        rpn=RPNConfig(channels=32, anchor_sizes=(16, 32, 64), min_size=4),
        rcnn=RCNNConfig(),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_detector(architecture, len(class_names), TORCHVISION).eval()
        _spread(network)
    metadata = Metadata(
        task="detection",
        architecture=architecture.model_dump(mode="json"),
        class_names=tuple(class_names),
        category_ids=category_ids,
        preprocessing=TORCHVISION,
        sizes={"short_side": sides[0], "long_side": sides[1]},
        test={"proposals": 30} if test is None else test,
        source="a test",
    )
    save_weights(path, network.state_dict(), metadata)
    return path


def read_detector(path: Path) -> tuple[FasterRCNN, DetectorArchitecture, Metadata]:
    """The detector of a weights file, with its BN layers as they were trained."""
    tensors, metadata = read_weights(path)
    return *detector_from_tensors(tensors, metadata, str(path)), metadata


def write_tiny_classifier(path: Path, class_names: Sequence[str] = SHAPE_CLASSES) -> Path:
    """A classifier of random weights for crops of 32 px."""
    architecture = ClassifierArchitecture(network=NETWORK, frozen_stages=0, frozen_batch_norm=False)
    network = build_classifier(architecture, len(class_names), torch.Generator().manual_seed(0)).eval()
    crop = CropConfig(size=32, train_sides=(32, 40), test_side=32)
    write_classifier(
        path,
        network,
        architecture,
        class_names=tuple(class_names),
        preprocessing=TORCHVISION,
        crop=crop,
        source="a test",
    )
    return path


@torch.no_grad()
def _spread(network: FasterRCNN) -> None:
    image = torch.randint(0, 256, (3, SHORT_SIDE, SHORT_SIDE), dtype=torch.uint8)
    (output,) = network([image])
    network.rpn.cls_logits.weight.mul_(2 / output.objectness.std())
    network.rpn.bbox_pred.weight.mul_(0.2 / output.deltas.std())
    head, predictor = network.roi_head, network.roi_head.box_predictor
    logits, deltas = head([output.features], [output.anchors[::10]], [output.size])
    for layer, values, spread in ((predictor.cls_score, logits, 4.0), (predictor.bbox_pred, deltas, 0.5)):
        factor = spread / (values - values.mean(dim=0)).std()
        layer.weight.mul_(factor)
        layer.bias.sub_(values.mean(dim=0).flatten() * factor)
