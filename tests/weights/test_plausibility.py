"""A recipe that the weights themselves contradict is refused: published weights under another's names or recipe."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from detres.data.preprocessing import MSRA, TORCHVISION
from detres.errors import WeightsError
from detres.networks.config import NetworkConfig
from detres.networks.resnet import build_network
from detres.weights.foreign import read_backbone
from detres.weights.layouts.tagged_safetensors import entries_of
from detres.weights.plausibility import estimate_input_deviation, find_contradiction

MSRA_FILE = "resnet50-msra-conv1-layer3.safetensors"
TORCHVISION_FILE = "resnet18-tv-conv1-layer3.safetensors"


def test_published_weights_agree_with_their_own_recipe_and_not_with_the_other(real_data):
    """Truth: what their authors say of them (data 0..255 without std; 0..1 with std)."""
    msra = load_file(real_data / "weights" / MSRA_FILE)
    theirs = load_file(real_data / "weights" / TORCHVISION_FILE)
    assert find_contradiction(msra, MSRA) is None
    assert find_contradiction(theirs, TORCHVISION) is None
    assert find_contradiction(msra, TORCHVISION) is not None
    assert find_contradiction(theirs, MSRA) is not None
    for path in sorted((real_data / "cifar10_resnets").glob("*.th")):
        tensors = read_backbone(path).tensors
        assert find_contradiction(tensors, TORCHVISION) is None
        assert find_contradiction(tensors, MSRA) is not None


def test_msra_weights_under_torchvision_s_names_are_refused(real_data, tmp_path):
    torch.save(load_file(real_data / "weights" / MSRA_FILE), tmp_path / "resnet50.pth")
    with pytest.raises(
        WeightsError, match=r"had a deviation of about 66, but this recipe \(0..1, std 0.226\) makes it 1"
    ):
        read_backbone(tmp_path / "resnet50.pth")


def test_wrong_recipe_in_the_metadata_is_refused(real_data, tmp_path):
    tensors = load_file(real_data / "weights" / TORCHVISION_FILE)
    recipe = entries_of(NetworkConfig(name="resnet18", stride_in="3x3"), MSRA)
    save_file(tensors, tmp_path / "w.safetensors", recipe)
    with pytest.raises(
        WeightsError, match=r"had a deviation of about 1.2, but this recipe \(0..255, std 1\)"
    ):
        read_backbone(tmp_path / "w.safetensors")


def test_what_cannot_be_told_is_let_through():
    """Fresh statistics, none at all, and a network without conv1."""
    network = build_network(NetworkConfig(name="resnet18", width=0.125), 3)
    assert estimate_input_deviation(network.state_dict()) is None
    assert estimate_input_deviation({"conv1.weight": torch.randn(8, 3, 7, 7)}) is None
    assert (
        estimate_input_deviation(build_network(NetworkConfig(name="vgg16", width=0.125), 3).state_dict())
        is None
    )


def test_deviation_of_inputs_drawn_with_that_correlation():
    """Truth: conv1 of a single weight a channel passes its input on, so the variance is the input's."""
    weight = torch.zeros(4, 3, 7, 7)
    for channel, factor in enumerate((0.5, 1.0, 2.0, -3.0)):
        weight[channel, channel % 3, 3, 2] = factor
    variance = torch.tensor([0.25, 1.0, 4.0, 9.0]) * 25
    deviation = estimate_input_deviation({"conv1.weight": weight, "bn1.running_var": variance})
    assert deviation == pytest.approx(5.0)
