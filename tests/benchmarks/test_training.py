"""Training step by step beside the torchvision composition, on the same sampled anchors and regions."""

from __future__ import annotations

import pytest
import torch
from tiny_models import write_detector

from benchmarks.peers.composition import torchvision_faster_rcnn
from benchmarks.peers.training import build_peer, losses_side_by_side
from detres.config import load_config
from detres.data.preprocessing import TORCHVISION
from detres.detection.build import build_detector
from detres.detection.config import DetectionConfig
from detres.detection.data import read_training_data
from detres.errors import ConfigError
from detres.weights.checkpoint import read_weights

SETTINGS = [
    "data.train=[{dir: 'shapes:20', split: train}]",
    "data.val_fraction=0",
    "data.short_side=128",
    "data.long_side=160",
    "model.network.name=resnet18",
    "model.network.stride_in=3x3",
    "model.pooler=roi_align",
    "rpn.anchor_sizes=[16, 32, 64]",
    "rpn.channels=256",
    "rpn.cross_boundary=true",
    "rpn.batch_size_per_image=64",
    "rpn.proposals=100",
    "rpn.min_size=0.001",
    "rcnn.batch_size_per_image=8",
    "rcnn.smooth_l1_beta=0.1111111111111111",  # the composition has it built in
    "train.batch=1",  # torchvision divides by the samples of the batch, ours by each image's: equal at one image
    "train.lr=0.001",
    "train.warmup_factor=1",
]


def test_losses_stay_equal_to_torchvisions_over_20_steps():
    config = load_config(DetectionConfig, None, SETTINGS)
    sums = losses_side_by_side(config, read_training_data(config.data, config.train.seed), steps=20)
    assert sums[0][0] != pytest.approx(sums[-1][0], rel=1e-2)  # something was learnt
    for ours, theirs in sums:
        assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize(
    "key", ["model.global_context", "test.refine", "test.box_voting", "test.flip", "test.scales"]
)
def test_what_torchvision_has_nothing_like_is_not_left_out_in_silence(key):
    value = "[64, 128]" if key == "test.scales" else "true"
    config = load_config(DetectionConfig, None, [*SETTINGS, f"{key}={value}"])
    architecture = config.architecture(config.model.network)
    network = build_detector(architecture, 2, TORCHVISION)
    with pytest.raises(ConfigError, match=f"{key}: torchvision's composition has nothing like it"):
        torchvision_faster_rcnn(network, architecture, config.test)


def test_it_starts_from_a_detector_as_ours_does(tmp_path):
    names = ("cat", "dog")
    init = write_detector(tmp_path / "a.safetensors", names)
    settings = [*SETTINGS, "rpn.channels=32", "model.network.stride_in=1x1", f"model.init={init}"]
    config = load_config(DetectionConfig, None, settings)
    peer, (tensors, _) = build_peer(config, names), read_weights(init)
    for ours, theirs in (("conv", "conv.0.0"), ("cls_logits", "cls_logits")):
        assert torch.equal(peer.get_parameter(f"rpn.head.{theirs}.weight"), tensors[f"rpn.{ours}.weight"])
    cls_score = tensors["roi_head.box_predictor.cls_score.weight"]  # background last, there first
    own = peer.get_parameter("roi_heads.box_predictor.cls_score.weight")
    assert torch.equal(own, cls_score.roll(1, dims=0))
