"""Backbones of others: recognized by shapes or by their metadata, with the recipe; else refused with the reason.

Truths: torchvision's own networks (fresh weights), the published descriptions of the two partial files.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from detres.data.preprocessing import MSRA, TORCHVISION
from detres.errors import WeightsError
from detres.networks.config import NetworkConfig
from detres.networks.resnet import build_network, split_network
from detres.weights.checkpoint import Metadata, save_weights
from detres.weights.foreign import read_backbone
from detres.weights.loading import load_tensors

CACHED_NAME = "resnet18-f37072fd.pth"


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None).state_dict()


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vgg16"])
def test_torchvision_state_dict_is_recognized_by_shapes(name, monkeypatch):
    with torch.device("meta"):
        expected = torchvision.models.get_model(name, weights=None).state_dict()
    tensors = {
        key: torch.zeros(()).expand(value.shape) for key, value in expected.items()
    }  # shapes without the memory
    monkeypatch.setattr("detres.weights.foreign.read_pickle", lambda _: tensors)
    monkeypatch.setattr("detres.weights.foreign.find_weights", lambda _: Path(__file__))
    backbone = read_backbone(f"{name}.pth")
    assert backbone.network == {
        "name": name,
        "width": 1.0,
        "stride_in": "3x3",
        "pool": "torchvision",
        "eps": 1e-5,
    }
    assert backbone.preprocessing == TORCHVISION
    assert (backbone.missing, backbone.dropped) == ((), ())
    assert backbone.tensors.keys() == tensors.keys()


@pytest.mark.parametrize("wrapped", ["plain", "state_dict", "module."])
def test_torchvision_file_loads_whole(tmp_path, resnet18, wrapped):
    content = {"plain": resnet18, "state_dict": {"epoch": 3, "state_dict": resnet18}}.get(wrapped)
    torch.save(content or {f"module.{name}": tensor for name, tensor in resnet18.items()}, tmp_path / "w.pth")
    backbone = read_backbone(tmp_path / "w.pth")
    network = build_network(NetworkConfig.model_validate(backbone.network), 1000)
    assert load_tensors(network, backbone.tensors, where=backbone.source) == []
    assert torch.equal(network.layer4[1].conv2.weight, resnet18["layer4.1.conv2.weight"])
    assert not any(name.startswith("fc") for name in backbone.features())


def test_torchvision_safetensors_is_recognized_too(tmp_path, resnet18):
    save_file(resnet18, tmp_path / "w.safetensors", {"format": "pt"})
    assert read_backbone(tmp_path / "w.safetensors").network["name"] == "resnet18"


def test_trunk_alone_is_the_smallest_network_that_it_fits(tmp_path, resnet18):
    trunk = {name: tensor for name, tensor in resnet18.items() if not name.startswith(("layer4", "fc"))}
    torch.save(trunk, tmp_path / "w.pth")
    backbone = read_backbone(tmp_path / "w.pth")
    assert backbone.network["name"] == "resnet18"
    assert {name.split(".")[0] for name in backbone.missing} == {"layer4", "fc"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            {"conv1.weight": torch.zeros(64, 3, 7, 7), "blocks.0.w": torch.zeros(1)},
            "not recognized: .*unexpected blocks.0.w",
        ),
        ({"conv1.weight": torch.zeros(64, 3, 3, 3)}, r"conv1.weight is \(64, 3, 3, 3\), not \(64, 3, 7, 7\)"),
        ({"patch_embed.weight": torch.zeros(1)}, r"no known layout's names \(.*torchvision: conv1.weight"),
        ({"epoch": 3}, "holds no tensors by name"),
    ],
)
def test_unknown_networks_are_refused_with_the_reason(tmp_path, content, reason):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=reason):
        read_backbone(tmp_path / "w.pth")


def test_torchvision_by_name_takes_the_cached_file(tmp_path, resnet18, monkeypatch):
    """Torchvision's own code path, its download put in the cache beforehand under its published name."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    cached = tmp_path / "hub" / "checkpoints" / CACHED_NAME
    torch.save(resnet18, cached)
    backbone = read_backbone("torchvision:resnet18")
    assert backbone.source == "torchvision:resnet18"
    assert backbone.network["name"] == "resnet18"
    assert torch.equal(backbone.tensors["conv1.weight"], resnet18["conv1.weight"])
    cached.write_bytes(cached.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=f"{CACHED_NAME} is damaged"):
        read_backbone("torchvision:resnet18")


def test_failed_download_says_so(tmp_path, monkeypatch):
    def no_network(*_, **__):
        from urllib.error import URLError

        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(
        WeightsError, match=r"could not download https://.*resnet50.*Name or service not known"
    ):
        read_backbone("torchvision:resnet50")


def test_unknown_name_and_missing_file_are_refused(tmp_path, monkeypatch):
    with pytest.raises(WeightsError, match="did you mean 'resnet18'"):
        read_backbone("torchvision:resnet81")
    monkeypatch.setenv("DETRES_DATA", str(tmp_path / "data"))
    with pytest.raises(WeightsError, match=r"tried w.pth, .*data/w.pth, datasets/w.pth"):
        read_backbone("w.pth")


def test_relative_path_is_looked_up_in_the_data_folder(tmp_path, resnet18, monkeypatch):
    (tmp_path / "weights").mkdir()
    torch.save(resnet18, tmp_path / "weights" / "w.pth")
    monkeypatch.setenv("DETRES_DATA", str(tmp_path))
    assert read_backbone("weights/w.pth").network["name"] == "resnet18"


def test_our_classifier_is_a_backbone(tmp_path):
    config = NetworkConfig(name="resnet18", width=0.125, pool="caffe")
    network = build_network(config, 3)
    architecture = {"network": config.model_dump(), "freeze_at": 0}
    metadata = Metadata(
        task="classification",
        architecture=architecture,
        class_names=("a", "b", "c"),
        preprocessing=MSRA,
        sizes={"crop": 64},
    )
    save_weights(tmp_path / "m.safetensors", network.state_dict(), metadata)
    backbone = read_backbone(tmp_path / "m.safetensors")
    assert NetworkConfig.model_validate(backbone.network) == config
    assert (backbone.preprocessing, backbone.class_names, backbone.missing) == (MSRA, ("a", "b", "c"), ())
    assert load_tensors(network, backbone.tensors, where="m") == []


def test_our_detector_gives_its_trunk_and_head(tmp_path):
    config = NetworkConfig(name="resnet18", width=0.125)
    trunk, head = split_network(build_network(config, 3))
    tensors = {f"trunk.{name}": tensor for name, tensor in trunk.state_dict().items()}
    tensors |= {f"roi_head.body.{name}": tensor for name, tensor in head.state_dict().items()}
    tensors |= {"rpn.conv.weight": torch.zeros(1), "roi_head.logits.weight": torch.zeros(1)}
    metadata = Metadata(
        task="detection",
        architecture={"network": config.model_dump()},
        class_names=("cell",),
        preprocessing=TORCHVISION,
        sizes={"short_side": 600, "long_side": 1000},
    )
    save_weights(tmp_path / "m.safetensors", tensors, metadata)
    backbone = read_backbone(tmp_path / "m.safetensors")
    assert backbone.missing == ("fc.weight", "fc.bias")
    assert backbone.class_names is None
    assert load_tensors(trunk, backbone.tensors, where="m", partial=True) == []
    assert load_tensors(head, backbone.tensors, where="m", partial=True) == []


def test_described_partial_file_without_recipe_is_refused(tmp_path, resnet18):
    save_file(
        resnet18, tmp_path / "w.safetensors", {"architecture": "resnet18", "mean": "0,0,0", "std": "1,1,1"}
    )
    with pytest.raises(WeightsError, match=r"hold no usable recipe .*stride_in_1x1"):
        read_backbone(tmp_path / "w.safetensors")


def test_file_that_is_not_what_it_says_is_refused(tmp_path, resnet18):
    recipe = {
        "mean": "0,0,0",
        "std": "1,1,1",
        "channel_order": "RGB",
        "value_range": "0..1",
        "bn_eps": "1e-5",
    }
    recipe |= {"architecture": "resnet50", "stride_in_1x1": "true", "maxpool": "ceil_mode true"}
    save_file(resnet18, tmp_path / "w.safetensors", recipe)
    with pytest.raises(
        WeightsError, match=r"is not the resnet50 that it is said to be: layer1.0.conv1.weight is"
    ):
        read_backbone(tmp_path / "w.safetensors")


def test_msra_trunk_comes_with_its_recipe(real_data):
    backbone = read_backbone(real_data / "weights" / "resnet50-msra-conv1-layer3.safetensors")
    assert backbone.network == {
        "name": "resnet50",
        "width": 1.0,
        "stride_in": "1x1",
        "pool": "caffe",
        "eps": 1e-5,
    }
    assert backbone.preprocessing == MSRA
    # Of conv5_x the file has one convolution with its BN; the other BN vectors belong to layers it lacks.
    assert {name for name in backbone.tensors if name.startswith("layer4")} == {
        "layer4.0.conv1.weight",
        *(f"layer4.0.bn1.{part}" for part in ("weight", "bias", "running_mean", "running_var")),
    }
    assert "layer4.2.bn3.running_var" in backbone.dropped
    assert "layer4.2.bn3.running_var" in backbone.missing
    assert {"fc.weight", "layer4.0.downsample.0.weight", "layer4.2.conv3.weight"} <= set(backbone.missing)
    trunk, _ = split_network(build_network(NetworkConfig.model_validate(backbone.network), 1))
    assert load_tensors(trunk, backbone.tensors, where="msra", partial=True) == []


def test_torchvision_trunk_comes_with_its_recipe(real_data):
    backbone = read_backbone(real_data / "weights" / "resnet18-tv-conv1-layer3.safetensors")
    assert backbone.network == {
        "name": "resnet18",
        "width": 1.0,
        "stride_in": "3x3",
        "pool": "torchvision",
        "eps": 1e-5,
    }
    assert backbone.preprocessing == TORCHVISION
    assert backbone.dropped == ()
    convolutions = [name for name in backbone.missing if "conv" in name]
    assert convolutions == [f"layer4.{block}.conv{number}.weight" for block in (0, 1) for number in (1, 2)]
    assert "layer4.0.downsample.0.weight" in backbone.tensors
    assert len(backbone.missing) == 4 * 5
