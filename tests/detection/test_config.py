"""The configuration of a detector: contradictions are refused, keys arrive where they are used."""

from __future__ import annotations

import pydantic
import pytest

from detres.config import load_config
from detres.detection.config import DetectionConfig
from detres.errors import ConfigError, UserError
from detres.networks.config import NetworkConfig


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rpn.negative_iou=0.8", "rpn.negative_iou must not exceed rpn.positive_iou"),
        ("rcnn.negative_iou=0.6", "lowest_iou < negative_iou <= positive_iou"),
        ("rcnn.lowest_iou=0.5", "lowest_iou < negative_iou <= positive_iou"),
        ("model.network.name=cifar_resnet20", "no conv5_x"),
        ("data.short_side=2000", "long_side"),
        ("rpn.size=[32]", "sizes"),
        ("test.nms=0", "test.nms"),
        ("model.region_pooling=avg", "model.region_pooling"),
        ("rpn.sizes=[]", "rpn.sizes"),
        ("train.rpn_steps.length=50 %", "train.rpn_steps.*50 % of itself"),
        ("train={mode: alternating, schedule: plateau}", "steps 1 to 3 of mode alternating"),
    ],
)
def test_contradictions_and_typos_are_the_users_errors(override, message):
    with pytest.raises(UserError, match=message):
        load_config(DetectionConfig, None, [override])


def test_defaults_are_the_papers():
    """He et al. 2015, Appendix A; Ren et al. 2015, §3.1 and §3.3; Girshick 2015, §2.3 and §3.1."""
    config = DetectionConfig()
    step = config.step_options(20)
    assert (config.data.short_side, config.data.long_side) == (600, 1000)
    assert (step.anchors.count, step.anchors.positive_share) == (256, 0.5)
    assert (step.anchors.positive_iou, step.anchors.negative_iou, step.anchors.cross_border) == (
        0.7,
        0.3,
        False,
    )
    assert (step.proposals.before_nms, step.proposals.after_nms, step.proposals.nms) == (12000, 2000, 0.7)
    assert (step.regions.count, step.regions.positive_share, step.regions.positive_iou) == (128, 0.25, 0.5)
    test = config.architecture(NetworkConfig()).proposal_options(config.test)
    assert (test.before_nms, test.after_nms) == (6000, 300)
    assert config.model.region_pooling == "max"
    assert config.model.freeze_at == 2


def test_keys_reach_the_step_and_the_architecture():
    config = load_config(
        DetectionConfig,
        None,
        [
            "rpn.sizes=[16, 48]",
            "rpn.samples=64",
            "rpn.beta=0.5",
            "rpn.min_side=3",
            "rcnn.samples=32",
            "rcnn.lowest_iou=0.1",
            "rcnn.beta=0.25",
            "rcnn.divisors=[1, 1, 1, 1]",
            "model.aligned=true",
        ],
    )
    step, architecture = config.step_options(7), config.architecture(NetworkConfig(name="resnet18"))
    assert (step.num_classes, step.anchors.count, step.anchor_beta) == (7, 64, 0.5)
    assert (step.regions.count, step.regions.lowest_iou, step.region_beta) == (32, 0.1, 0.25)
    assert step.proposals.min_side == architecture.proposal_min_side == 3
    assert step.regions.divisors == architecture.box_divisors == (1, 1, 1, 1)
    assert architecture.anchor_sizes == (16, 48)
    assert architecture.aligned
    assert architecture.network.name == "resnet18"


def test_configurations_are_frozen():
    with pytest.raises(pydantic.ValidationError):
        DetectionConfig().rpn.samples = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "key", ["rpn.sizes=[-1, 32]", "rpn.ratios=[0, 1]", "rcnn.divisors=[0.1, 0.1, 0, 0.2]"]
)
def test_sizes_ratios_and_divisors_are_positive(key):
    with pytest.raises(ConfigError, match=key.partition("=")[0]):
        load_config(DetectionConfig, None, [key])
