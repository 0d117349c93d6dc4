"""timm's, published CIFAR and described files: recognized by their names, with their own recipe; else refused.

Truths: the tensors themselves, and for the published CIFAR networks their descriptions.
"""

from __future__ import annotations

import argparse
import json

import pytest
import torch
from safetensors.torch import save_file

from detres.data.preprocessing import TORCHVISION
from detres.errors import WeightsError
from detres.networks.config import NetworkConfig
from detres.networks.resnet import build_network
from detres.weights.foreign import read_backbone

NARROW = {"width": 0.125, "stride_in": "3x3"}


def state_of(name: str, classes: int = 5) -> dict[str, torch.Tensor]:
    return build_network(NetworkConfig.model_validate({"name": name, **NARROW}), classes).state_dict()


def hub_config(architecture: str, **recipe: object) -> str:
    return json.dumps({"architecture": architecture, "num_classes": 5, "pretrained_cfg": recipe})


def test_timm_hub_folder_says_its_recipe(tmp_path):
    save_file(state_of("resnet50"), tmp_path / "model.safetensors", {"format": "pt"})
    recipe = {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "input_size": [3, 160, 160],
        "crop_pct": 0.95,
    }
    (tmp_path / "config.json").write_text(hub_config("resnet50", **recipe))
    backbone = read_backbone(tmp_path / "model.safetensors")
    assert (backbone.layout, backbone.network["name"]) == ("timm's", "resnet50")
    assert (backbone.network["stride_in"], backbone.network["pool"]) == ("3x3", "torchvision")
    assert (backbone.preprocessing.mean, backbone.preprocessing.std) == ((0.5,) * 3, (0.25,) * 3)
    assert backbone.crop is not None
    assert (backbone.crop.size, backbone.crop.test_side) == (160, 168)


@pytest.mark.parametrize("name", ["resnet50.a1_in1k", "tv_resnet50", "gluon_resnet50_v1b"])
def test_timm_s_names_of_one_network(tmp_path, name):
    torch.save(state_of("resnet50"), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(hub_config(name))
    backbone = read_backbone(tmp_path / "pytorch_model.bin")
    assert (backbone.network["name"], backbone.preprocessing, backbone.crop) == (
        "resnet50",
        TORCHVISION,
        None,
    )


@pytest.mark.parametrize("name", ["resnetblur50", "resnetaa50", "resnet26", "wide_resnet50_2"])
def test_timm_networks_that_hide_behind_the_same_names_are_refused(tmp_path, name):
    torch.save(state_of("resnet50"), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(hub_config(name))
    with pytest.raises(WeightsError, match=f"does not build timm's {name}"):
        read_backbone(tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(WeightsError, match=r"config.json: not JSON"):
        read_backbone(tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(hub_config("resnet50", mean=[0.5]))
    with pytest.raises(WeightsError, match="no usable pretrained_cfg"):
        read_backbone(tmp_path / "pytorch_model.bin")


def test_timm_s_recipe_is_of_the_hub_s_file_alone(tmp_path, caplog):
    """Someone's own weights saved into a folder of the hub are not what its config.json says."""
    (tmp_path / "config.json").write_text(hub_config("resnet50", mean=[0.5] * 3, std=[0.5] * 3))
    torch.save(state_of("resnet18"), tmp_path / "mine.pth")
    backbone = read_backbone(tmp_path / "mine.pth")
    assert (backbone.layout, backbone.network["name"]) == ("torchvision's", "resnet18")
    assert backbone.preprocessing == TORCHVISION
    assert "config.json is not read for mine.pth" in caplog.text


def test_what_timm_would_do_otherwise_is_told(tmp_path, caplog):
    save_file(state_of("resnet50"), tmp_path / "model.safetensors", {"format": "pt"})
    usual = {"input_size": [3, 224, 224], "interpolation": "bilinear", "crop_mode": "center"}
    (tmp_path / "config.json").write_text(hub_config("resnet50", **usual))
    read_backbone(tmp_path / "model.safetensors")
    assert not caplog.records
    other = {"input_size": [3, 160, 160], "interpolation": "bicubic", "test_input_size": [3, 288, 288]}
    (tmp_path / "config.json").write_text(hub_config("resnet50", **other))
    read_backbone(tmp_path / "model.safetensors")
    told = caplog.records[0].getMessage()
    assert all(text in told for text in ("interpolation bicubic", "input size 160", "test size 288"))


def test_timm_training_checkpoint_with_its_options(tmp_path):
    """`arch` tells the network; the options beside the weights are plain values and do not keep it from being read."""
    content = {"epoch": 3, "arch": "resnet18", "args": argparse.Namespace(lr=0.1, model="resnet18")}
    torch.save({**content, "state_dict": state_of("resnet18")}, tmp_path / "checkpoint.pth.tar")
    backbone = read_backbone(tmp_path / "checkpoint.pth.tar")
    assert (backbone.layout, backbone.network["name"]) == ("timm's", "resnet18")


def test_timm_file_without_a_recipe_is_taken_as_torchvision_s(tmp_path):
    save_file(state_of("resnet18"), tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["another tool's"]}))
    backbone = read_backbone(tmp_path / "model.safetensors")
    assert (backbone.layout, backbone.preprocessing) == ("torchvision's", TORCHVISION)


def test_timm_vgg(tmp_path):
    """Truth: torchvision's tensors; timm writes fc6 and fc7 as convolutions and calls the last layer head.fc."""
    state = state_of("vgg16")
    renamed = {name: tensor for name, tensor in state.items() if name.startswith("features")}
    for ours, theirs in (
        ("classifier.0", "pre_logits.fc1"),
        ("classifier.3", "pre_logits.fc2"),
        ("classifier.6", "head.fc"),
    ):
        weight = state[f"{ours}.weight"]
        side = 7 if ours == "classifier.0" else 1
        shape = weight.shape if theirs == "head.fc" else (len(weight), -1, side, side)
        renamed[f"{theirs}.weight"], renamed[f"{theirs}.bias"] = weight.reshape(shape), state[f"{ours}.bias"]
    torch.save(renamed, tmp_path / "w.pth")
    backbone = read_backbone(tmp_path / "w.pth")
    assert (backbone.layout, backbone.network["name"]) == ("timm's", "vgg16")
    assert all(torch.equal(backbone.tensors[name], tensor) for name, tensor in state.items())


def test_vgg_features_of_torchvision_have_caffe_s_means(tmp_path):
    state = state_of("vgg16")
    blank = {
        name: tensor * float("nan") if name.startswith("classifier") else tensor
        for name, tensor in state.items()
    }
    torch.save(blank, tmp_path / "vgg16_features.pth")
    backbone = read_backbone(tmp_path / "vgg16_features.pth")
    assert not any(name.startswith("classifier") for name in backbone.tensors)
    assert backbone.preprocessing.std == (1 / 255,) * 3


@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_published_cifar_networks(real_data, depth):
    (path,) = (real_data / "cifar10_resnets").glob(f"resnet{depth}-*.th")
    backbone = read_backbone(path)
    assert backbone.network == {
        "name": f"cifar_resnet{depth}",
        "shortcut": "A",
        "zero_channels": "both",
        "width": 1.0,
        "eps": 1e-5,
    }
    assert (backbone.preprocessing, backbone.missing, backbone.dropped) == (TORCHVISION, (), ())
    assert backbone.crop is not None
    assert (backbone.crop.size, backbone.crop.test_side, backbone.crop.pad) == (32, None, 4)
    assert backbone.class_names is not None
    assert (backbone.class_names[0], backbone.class_names[-1]) == ("airplane", "truck")


def test_cifar_network_with_projections_is_option_b(tmp_path):
    network = build_network(NetworkConfig(name="cifar_resnet20", shortcut="B"), 100)
    renamed = {
        f"module.{name}".replace("module.fc", "module.linear").replace("downsample", "shortcut"): tensor
        for name, tensor in network.state_dict().items()
    }
    torch.save({"state_dict": renamed, "best_prec1": 68.0}, tmp_path / "w.th")
    backbone = read_backbone(tmp_path / "w.th")
    assert (backbone.network["name"], backbone.network["shortcut"]) == ("cifar_resnet20", "B")
    assert backbone.class_names is None


def test_norms_without_statistics_and_numbers_that_are_none_are_refused(tmp_path):
    state = state_of("resnet18")
    grouped = {name: tensor for name, tensor in state.items() if "running" not in name and "num_" not in name}
    torch.save(grouped, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"norms without running_mean \(bn1.weight"):
        read_backbone(tmp_path / "w.pth")
    torch.save({**state, "fc.bias": state["fc.bias"] / 0}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"not finite: fc.bias"):
        read_backbone(tmp_path / "w.pth")


def test_unknown_names_are_refused_with_what_was_looked_for(tmp_path):
    torch.save({"patch_embed.weight": torch.zeros(1), "blocks.0.weight": torch.zeros(1)}, tmp_path / "w.pth")
    reason = (
        r"its 2 tensors \(patch_embed.weight, blocks.0.weight\) .*Caffe.*Caffe2.*CIFAR.*timm.*torchvision"
    )
    with pytest.raises(WeightsError, match=reason):
        read_backbone(tmp_path / "w.pth")
