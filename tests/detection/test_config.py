"""The configuration of a detector: contradictions are refused, defaults are the paper's, sections stay whole."""

from __future__ import annotations

import json

import pydantic
import pytest

from detres.config import load_config
from detres.detection.config import DetectionConfig, DetectionModelConfig, DetectorArchitecture
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
    rpn, rcnn, test = config.rpn, config.rcnn, config.test
    assert (config.data.short_side, config.data.long_side) == (600, 1000)
    assert (rpn.batch_size_per_image, rpn.positive_fraction) == (256, 0.5)
    assert (rpn.fg_iou_thresh, rpn.bg_iou_thresh, rpn.cross_boundary) == (0.7, 0.3, False)
    assert (rpn.pre_nms_top_n, rpn.proposals, rpn.nms_thresh) == (12000, 2000, 0.7)
    assert (rcnn.batch_size_per_image, rcnn.positive_fraction, rcnn.fg_iou_thresh) == (128, 0.25, 0.5)
    assert (test.pre_nms_top_n, test.proposals) == (6000, 300)
    assert config.model.pooler == "roi_pool"
    assert config.model.freeze_at == 2


def test_an_architecture_keeps_what_rebuilds_the_detector():
    """The sections as they are set, the network as the weights complete it, and not where the weights came from."""
    config = load_config(
        DetectionConfig,
        None,
        [
            "rpn.anchor_sizes=[16, 48]",
            "rcnn.target_stds=[1, 1, 1, 1]",
            "model={aligned: true, init: a.pth, init_partial: true, init_classes: {a: b}, freeze_at: 3}",
        ],
    )
    network = NetworkConfig(name="resnet18")
    architecture = config.architecture(network)
    assert (architecture.rpn, architecture.rcnn) == (config.rpn, config.rcnn)
    assert architecture.model == DetectionModelConfig(network=network, aligned=True, freeze_at=3)
    written = architecture.model_dump(mode="json")
    assert DetectorArchitecture.model_validate(json.loads(json.dumps(written))) == architecture


def test_keys_of_an_alternating_stage_beat_those_of_train():
    config = load_config(
        DetectionConfig, None, ["train={lr: 0.5, batch: 2, rpn_stage: {batch: 4}, rcnn_stage: {lr: 1}}"]
    )
    rpn, rcnn = config.train.for_stage("rpn"), config.train.for_stage("rcnn")
    assert ((rpn.batch, rpn.lr), (rcnn.batch, rcnn.lr)) == ((4, 0.5), (2, 1))
    assert rpn.model_copy(update={"batch": 2}) == rcnn.model_copy(update={"lr": 0.5})


def test_configurations_are_frozen():
    with pytest.raises(pydantic.ValidationError):
        DetectionConfig().rpn.proposals = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "key", ["rpn.anchor_sizes=[-1, 32]", "rpn.aspect_ratios=[0, 1]", "rcnn.target_stds=[0.1, 0.1, 0, 0.2]"]
)
def test_sizes_ratios_and_divisors_are_positive(key):
    with pytest.raises(ConfigError, match=key.partition("=")[0]):
        load_config(DetectionConfig, None, [key])
