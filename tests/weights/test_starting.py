"""A run's saved configuration says what its initial weights settled, and starts the same run again."""

from __future__ import annotations

import pytest
import torch
import torchvision

from detres.config import load_config, to_yaml
from detres.detection.config import DetectionConfig
from detres.errors import ConfigError
from detres.weights.starting import start_network, with_network


@pytest.fixture
def torchvision_file(tmp_path):
    path = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    return path


def test_saved_configuration_starts_again(torchvision_file, tmp_path):
    config = with_network(load_config(DetectionConfig, None, [f"model.init={torchvision_file}"]))
    network = config.model.network
    assert (network.name, network.stride_in, network.pool) == ("resnet18", "3x3", "torchvision")
    saved = tmp_path / "config.yaml"
    saved.write_text(to_yaml(config))
    again = load_config(DetectionConfig, saved)
    assert again == config
    assert start_network(again.model.network, again.model.init)[0] == network


def test_a_key_that_the_weights_contradict_is_refused(torchvision_file):
    config = load_config(
        DetectionConfig, None, [f"model.init={torchvision_file}", "model.network.stride_in=1x1"]
    )
    with pytest.raises(ConfigError, match="stride_in is 1x1"):
        with_network(config)
