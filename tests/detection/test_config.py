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
        ("rpn.bg_iou_thresh=0.8", "rpn.bg_iou_thresh must not exceed rpn.fg_iou_thresh"),
        ("rcnn.bg_iou_thresh=0.6", "bg_iou_thresh_lo < bg_iou_thresh <= fg_iou_thresh"),
        ("rcnn.bg_iou_thresh_lo=0.5", "bg_iou_thresh_lo < bg_iou_thresh <= fg_iou_thresh"),
        ("model.network.name=cifar_resnet20", "no conv5_x"),
        ("data.short_side=2000", "long_side"),
        ("rpn.anchor_size=[32]", "anchor_sizes"),
        ("test.nms_thresh=0", "test.nms_thresh"),
        ("model.pooler=avg", "model.pooler"),
        ("rpn.anchor_sizes=[]", "rpn.anchor_sizes"),
        ("train.rpn_stage.length=50 %", "train.rpn_stage.*50 % of itself"),
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
    assert (step.anchors.count, step.anchors.positive_fraction) == (256, 0.5)
    assert (step.anchors.fg_iou_thresh, step.anchors.bg_iou_thresh, step.anchors.cross_boundary) == (
        0.7,
        0.3,
        False,
    )
    assert (step.proposals.before_nms, step.proposals.after_nms, step.proposals.nms) == (12000, 2000, 0.7)
    assert (step.regions.count, step.regions.positive_fraction, step.regions.fg_iou_thresh) == (
        128,
        0.25,
        0.5,
    )
    test = config.architecture(NetworkConfig()).proposal_options(config.test)
    assert (test.before_nms, test.after_nms) == (6000, 300)
    assert config.model.pooler == "roi_pool"
    assert config.model.freeze_at == 2


def test_keys_reach_the_step_and_the_architecture():
    config = load_config(
        DetectionConfig,
        None,
        [
            "rpn.anchor_sizes=[16, 48]",
            "rpn.batch_size_per_image=64",
            "rpn.smooth_l1_beta=0.5",
            "rpn.min_size=3",
            "rcnn.batch_size_per_image=32",
            "rcnn.bg_iou_thresh_lo=0.1",
            "rcnn.smooth_l1_beta=0.25",
            "rcnn.target_stds=[1, 1, 1, 1]",
            "model.aligned=true",
        ],
    )
    step, architecture = config.step_options(7), config.architecture(NetworkConfig(name="resnet18"))
    assert (step.num_classes, step.anchors.count, step.anchor_beta) == (7, 64, 0.5)
    assert (step.regions.count, step.regions.bg_iou_thresh_lo, step.region_beta) == (32, 0.1, 0.25)
    assert step.proposals.min_size == architecture.proposal_min_size == 3
    assert step.regions.target_stds == architecture.target_stds == (1, 1, 1, 1)
    assert architecture.anchor_sizes == (16, 48)
    assert architecture.aligned
    assert architecture.network.name == "resnet18"


def test_configurations_are_frozen():
    with pytest.raises(pydantic.ValidationError):
        DetectionConfig().rpn.samples = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "key", ["rpn.anchor_sizes=[-1, 32]", "rpn.aspect_ratios=[0, 1]", "rcnn.target_stds=[0.1, 0.1, 0, 0.2]"]
)
def test_sizes_ratios_and_divisors_are_positive(key):
    with pytest.raises(ConfigError, match=key.partition("=")[0]):
        load_config(DetectionConfig, None, [key])
