"""The table of models: the paper's exact figures, sizes counted by hand, and parts that add up to the whole."""

from __future__ import annotations

import torch

from detres.detection.build import build_detector
from detres.detection.config import DetectionConfig
from detres.networks.arithmetic import count_multiply_adds, count_parameters
from detres.networks.config import NetworkConfig
from detres.report.model_table import detector_rows, network_rows


def test_figures_of_table_1():
    """Truth: exact counts behind the paper's rounded ones (conv and fc, 224 px)."""
    rows = {(row.name, row.options): row for row in network_rows()}
    exact = {
        ("resnet18", "option B"): (1_814_073_344, 11_689_512),
        ("resnet34", "option A"): (3_644_493_824, 21_623_848),
        ("plain34", ""): (3_644_493_824, 21_623_848),
        ("resnet50", "option B, stride in the 1x1"): (3_857_973_248, 25_557_032),
        ("resnet152", "option B, stride in the 3x3"): (11_513_626_624, 60_192_808),
        ("vgg16", ""): (15_470_264_320, 138_357_544),
    }
    assert {key: (rows[key].multiply_adds, rows[key].parameters) for key in exact} == exact
    assert rows["resnet50", "option B, stride in the 1x1"].sizes == (112, 56, 28, 14, 7)
    assert rows["resnet101", "option B, stride in the 1x1"].blocks == (3, 4, 23, 3)
    assert rows["cifar_resnet110", "option A"].sizes == (32, 32, 16, 8)
    assert rows["vgg16", ""].sizes == (224, 112, 56, 28, 14)
    assert rows["vgg16", ""].blocks == (2, 2, 3, 3, 3)
    for row in rows.values():  # the paper rounds, and counts the stride in the 1x1
        if row.paper is not None:
            ours = row.parameters if row.name.startswith("cifar") else row.multiply_adds
            assert abs(ours / row.paper - 1) < 0.08, row


def test_detectors_parts():
    """Truth: ResNet-50's trunk and head by hand at 64 x 96, and the whole detector's parameters."""
    rows = {(row.network, row.part): row for row in detector_rows(64, 96, num_classes=20)}
    assert len(rows) == 18
    trunk, rpn, head = (rows["resnet50", part] for part in ("trunk", "RPN", "head per region"))
    config = DetectionConfig().architecture(NetworkConfig(name="resnet50"))
    anchors = len(config.rpn.anchor_sizes) * len(config.rpn.aspect_ratios)
    assert trunk.output == (1024, 4, 6)
    assert rpn.output == (anchors * 5, 4, 6)
    assert rpn.multiply_adds == 4 * 6 * (9 * 1024 * 512 + 512 * anchors * 5)
    first = 14 * 14 * 1024 * 512 // 4 + 7 * 7 * (9 * 512 * 512 + 512 * 2048 + 1024 * 2048)
    others = 2 * 7 * 7 * (2 * 2048 * 512 + 9 * 512 * 512)
    assert head.output == (21, 80)
    assert head.multiply_adds == first + others + 2048 * (21 + 80)
    with torch.device("meta"):
        detector = build_detector(config, 20, _preprocessing())
    assert sum(row.parameters for row in (trunk, rpn, head)) == count_parameters(detector)


def test_parameters_count_constant_norms_as_well():
    """Truth: the same network with norms that are trained."""
    from detres.networks.norm import freeze_batch_norm
    from detres.networks.resnet import build_network

    network = build_network(NetworkConfig(name="resnet18", width=0.125), 5)
    whole = sum(parameter.numel() for parameter in network.parameters())
    assert count_parameters(network) == whole == count_parameters(freeze_batch_norm(network))
    assert count_multiply_adds(network.fc, (1, 64)) == 64 * 5  # type: ignore[arg-type]


def _preprocessing():
    from detres.data.preprocessing import TORCHVISION

    return TORCHVISION
