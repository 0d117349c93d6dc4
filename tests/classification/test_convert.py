"""Weights in and out: bit for bit through both directions, and nothing converted whose recipe would be lost."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

from detres.classification.classifier import crop_of, read_classifier
from detres.classification.convert import convert_to_detres, convert_to_torchvision, imagenet_names
from detres.data.preprocessing import MSRA, TORCHVISION, normalize
from detres.errors import UserError, WeightsError
from detres.networks.config import NetworkConfig
from detres.networks.norm import FrozenBatchNorm2d
from detres.networks.resnet import build_network
from detres.weights.foreign import read_backbone
from detres.weights.layouts.tagged_safetensors import entries_of

LETTERS = tuple("abcdefg")


def fresh(name: str, classes: int = 7) -> dict[str, torch.Tensor]:
    """Torchvision's own network with statistics of its own; filled without its slow initialization."""
    with torch.device("meta"):
        state = torchvision.models.get_model(name, weights=None, num_classes=classes).state_dict()
    generator = torch.Generator().manual_seed(0)
    filled = {}
    for key, value in state.items():
        if value.is_floating_point():
            below = 0.5 if not key.endswith("running_var") else -0.5
            filled[key] = torch.rand(value.shape, generator=generator) - below
        else:
            filled[key] = torch.tensor(17)
    return filled


LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ("resnet101", "resnet152", "vgg16", "vgg19")]


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", *LARGE])
def test_round_trip_of_torchvision_is_bit_equal(tmp_path, name):
    """Torchvision -> detres -> torchvision: the same names in the same order, the same bits."""
    state = fresh(name)
    torch.save(state, tmp_path / "in.pth")
    convert_to_detres(tmp_path / "in.pth", tmp_path / "ours.safetensors", LETTERS)
    (tmp_path / "in.pth").unlink()
    convert_to_torchvision(tmp_path / "ours.safetensors", tmp_path / "out.pth")
    back = torch.load(tmp_path / "out.pth", weights_only=True)
    assert list(back) == list(state)
    assert all(
        torch.equal(back[key], tensor) and back[key].dtype == tensor.dtype for key, tensor in state.items()
    )


def test_converted_network_computes_what_torchvision_s_does(tmp_path):
    network = torchvision.models.resnet18(num_classes=7).eval()
    torch.save(network.state_dict(), tmp_path / "in.pth")
    convert_to_detres(tmp_path / "in.pth", tmp_path / "ours.safetensors", LETTERS)
    ours, architecture, metadata = read_classifier(tmp_path / "ours.safetensors")
    assert (metadata.class_names, metadata.preprocessing) == (LETTERS, TORCHVISION)
    assert (crop_of(metadata).size, crop_of(metadata).test_side, architecture.frozen_batch_norm) == (
        224,
        256,
        False,
    )
    images = torch.randint(0, 256, (2, 3, 64, 61), dtype=torch.uint8)
    inputs = normalize(images, TORCHVISION)
    with torch.no_grad():
        torch.testing.assert_close(ours(inputs), network(inputs), rtol=1e-4, atol=1e-5)
    convert_to_torchvision(tmp_path / "ours.safetensors", tmp_path / "out.pth")
    torchvision.models.resnet18(num_classes=7).load_state_dict(
        torch.load(tmp_path / "out.pth", weights_only=True)
    )


def write_described(path, name="resnet18", drop=(), **options):
    """Narrow weights whose recipe is MSRA's and stands in the metadata."""
    config = NetworkConfig.model_validate({"name": name, "pool": "caffe", "stride_in": "1x1", **options})
    state = build_network(config, 7).state_dict()
    kept = {key: tensor for key, tensor in state.items() if not key.startswith(tuple(drop))}
    save_file(kept, path, entries_of(config, MSRA))
    return kept


def test_recipe_that_is_not_torchvision_s_is_kept_or_refused(tmp_path):
    kept = write_described(tmp_path / "in.safetensors", "resnet50", drop=("fc.", "layer4."))
    with pytest.raises(
        WeightsError, match=r"stride_in 1x1, not 3x3; pool caffe, not torchvision; BGR 0..255"
    ):
        convert_to_torchvision(tmp_path / "in.safetensors", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()
    backbone, foreign = convert_to_torchvision(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert len(foreign) == 3
    again = read_backbone(tmp_path / "out.safetensors")
    assert (again.network, again.preprocessing, again.missing) == (
        backbone.network,
        MSRA,
        backbone.missing,
    )
    written = load_file(tmp_path / "out.safetensors")
    assert written.keys() == kept.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in kept.items())


def test_whole_weights_with_msra_s_recipe_become_a_classifier(tmp_path):
    write_described(tmp_path / "in.safetensors", width=0.125)
    convert_to_detres(tmp_path / "in.safetensors", tmp_path / "ours.safetensors", LETTERS)
    _, architecture, metadata = read_classifier(tmp_path / "ours.safetensors")
    assert (architecture.network.pool, architecture.network.stride_in) == ("caffe", "1x1")
    assert metadata.preprocessing == MSRA


def test_norms_without_statistics_stay_constant(tmp_path):
    """Caffe2's files have scale and offset only: such BN must not be trained or computed anew unasked."""
    network = build_network(NetworkConfig(name="resnet50", width=0.125), 7)
    arrays = {}
    for name, tensor in network.state_dict().items():
        stem = name.replace("layer", "").split(".")
        if name.startswith("fc"):
            arrays["fc1000_w" if name.endswith("weight") else "fc1000_b"] = tensor.numpy()
        elif name.startswith("layer") and "running" not in name and "num_" not in name:
            is_norm = "bn" in name or "downsample.1" in name
            branch = "1" if "downsample" in name else f"2{'abc'[int(stem[2][-1]) - 1]}"
            part = {"weight": "bn_s", "bias": "bn_b"}[stem[-1]] if is_norm else "w"
            arrays[f"res{int(stem[0]) + 1}_{stem[1]}_branch{branch}_{part}"] = tensor.numpy()
    arrays |= {"conv1_w": network.state_dict()["conv1.weight"].numpy()}
    arrays |= {"res_conv1_bn_s": np.ones(8, np.float32), "res_conv1_bn_b": np.zeros(8, np.float32)}
    (tmp_path / "in.pkl").write_bytes(pickle.dumps(arrays))
    convert_to_detres(tmp_path / "in.pkl", tmp_path / "ours.safetensors", LETTERS)
    ours, architecture, _ = read_classifier(tmp_path / "ours.safetensors")
    assert architecture.frozen_batch_norm
    assert isinstance(ours.get_submodule("bn1"), FrozenBatchNorm2d)


def test_names_of_the_outputs(tmp_path):
    state = {**fresh("resnet18"), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save(state, tmp_path / "in.pth")
    convert_to_detres(tmp_path / "in.pth", tmp_path / "ours.safetensors")
    names = read_classifier(tmp_path / "ours.safetensors")[2].class_names
    assert names == imagenet_names()
    assert (len(set(names)), names[0], names[-1]) == (1000, "tench", "toilet tissue")
    with pytest.raises(WeightsError, match="has 1000 classes, but 7 names are given"):
        convert_to_detres(tmp_path / "in.pth", tmp_path / "ours.safetensors", LETTERS)
    torch.save(fresh("resnet18"), tmp_path / "in.pth")
    with pytest.raises(WeightsError, match=r"its 7 classes have no names; --classes"):
        convert_to_detres(tmp_path / "in.pth", tmp_path / "ours.safetensors")
    with pytest.raises(WeightsError, match="given twice: a"):
        convert_to_detres(tmp_path / "in.pth", tmp_path / "ours.safetensors", ("a", "a", *"bcdef"))


def test_what_cannot_be_converted_is_refused(tmp_path):
    state = fresh("resnet18")
    torch.save({name: tensor for name, tensor in state.items() if "fc" not in name}, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match=r"lacks fc.weight, fc.bias.*--init"):
        convert_to_detres(tmp_path / "part.pth", tmp_path / "ours.safetensors")
    convert_to_torchvision(tmp_path / "part.pth", tmp_path / "out.pth")  # a part goes on as a part
    torch.save(state, tmp_path / "in.pth")
    convert_to_detres(tmp_path / "in.pth", tmp_path / "ours.safetensors", LETTERS)
    with pytest.raises(WeightsError, match="a file of detres already"):
        convert_to_detres(tmp_path / "ours.safetensors", tmp_path / "again.safetensors")
    with pytest.raises(
        UserError, match=r"out.onnx: torchvision's weights are written as .pth or .safetensors"
    ):
        convert_to_torchvision(tmp_path / "in.pth", tmp_path / "out.onnx")
    write_described(tmp_path / "narrow.safetensors", width=0.125)
    with pytest.raises(WeightsError, match=r"torchvision has no resnet18 of shortcut B and width 0.125"):
        convert_to_torchvision(tmp_path / "narrow.safetensors", tmp_path / "out.safetensors")
