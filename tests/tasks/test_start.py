"""A run's saved configuration says what its initial weights settled, and starts the same run again."""

from __future__ import annotations

import pytest
import torch
import torchvision
from tiny_models import write_detector

from detres.config import load_config, to_yaml
from detres.data.preprocessing import TORCHVISION
from detres.detection.config import DetectionConfig
from detres.errors import ConfigError
from detres.networks.config import NetworkConfig
from detres.tasks.start import read_start, with_network
from detres.weights.checkpoint import read_weights


@pytest.fixture
def torchvision_file(tmp_path):
    path = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    return path


def test_saved_configuration_starts_again(torchvision_file, tmp_path):
    start = read_start(NetworkConfig(), str(torchvision_file))
    config = load_config(DetectionConfig, None, [f"model.init={torchvision_file}"])
    config = with_network(config, start.network)
    network = config.model.network
    assert (network.name, network.stride_in, network.pool) == ("resnet18", "3x3", "torchvision")
    saved = tmp_path / "config.yaml"
    saved.write_text(to_yaml(config))
    again = load_config(DetectionConfig, saved)
    assert again == config
    assert read_start(again.model.network, again.model.init).network == network


def test_a_key_that_the_weights_contradict_is_refused(torchvision_file):
    with pytest.raises(ConfigError, match="stride_in is 1x1"):
        read_start(NetworkConfig(stride_in="1x1"), str(torchvision_file))


def test_without_weights_the_network_is_the_configured_one():
    start = read_start(NetworkConfig(name="resnet34"), None)
    assert (start.network.name, start.preprocessing, start.backbone) == ("resnet34", TORCHVISION, None)


def test_a_weights_file_of_ours_is_kept_whole(tmp_path):
    path = write_detector(tmp_path / "d.safetensors", ("a", "b"))
    backbone = read_start(NetworkConfig(), str(path)).backbone
    assert backbone is not None
    assert backbone.checkpoint is not None
    tensors, metadata = backbone.checkpoint
    expected, of_file = read_weights(path)
    assert metadata == of_file
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert "conv1.weight" in backbone.tensors
    assert not [name for name in backbone.tensors if name.startswith("rpn.")]
