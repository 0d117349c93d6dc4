"""A run's saved configuration says what its initial weights settled, and starts the same run again."""

from __future__ import annotations

import pytest
import torch
import torchvision
from tiny_models import write_detector, write_tiny_classifier

from detres.config import load_config, to_yaml
from detres.data.preprocessing import MSRA, TORCHVISION
from detres.detection.config import DetectionConfig
from detres.errors import ConfigError
from detres.networks.config import NetworkConfig
from detres.tasks.start import read_start, with_network
from detres.weights.checkpoint import read_weights, save_weights

FORM = {"name": "resnet18", "width": 0.25, "stride_in": "3x3", "pool": "caffe", "eps": 2e-5}


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


@pytest.fixture
def own_file(tmp_path):
    """A weights file of ours whose network has `FORM`."""
    path = write_tiny_classifier(tmp_path / "c.safetensors")
    tensors, metadata = read_weights(path)
    network = {**metadata.architecture["network"], **FORM}
    changes = {"architecture": {**metadata.architecture, "network": network}, "preprocessing": MSRA}
    save_weights(path, tensors, metadata.model_copy(update=changes))
    return path


def test_form_and_preprocessing_come_with_the_weights(own_file):
    start = read_start(NetworkConfig(), str(own_file))
    assert {name: getattr(start.network, name) for name in FORM} == FORM
    assert start.preprocessing == MSRA


@pytest.mark.parametrize(
    ("key", "value"), [("name", "resnet34"), ("stride_in", "1x1"), ("pool", "torchvision"), ("eps", 1e-5)]
)
def test_a_key_that_the_weights_contradict_is_refused(key, value, own_file):
    with pytest.raises(ConfigError, match=f"model.network.{key} is {value}, but the weights .* have"):
        read_start(NetworkConfig.model_validate({key: value}), str(own_file))
    read_start(NetworkConfig.model_validate({key: FORM[key]}), str(own_file))


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
