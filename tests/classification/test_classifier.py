"""Classifiers from their parts: what is frozen, what is taken over from initial weights, what a file keeps."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

from detres.classification.classifier import (
    ClassifierStart,
    build_classifier,
    crop_of,
    read_classifier,
    start_classifier,
    write_classifier,
)
from detres.classification.config import ClassificationModelConfig, ClassifierArchitecture
from detres.data.config import CropConfig
from detres.data.preprocessing import MSRA
from detres.errors import ConfigError, WeightsError
from detres.networks.config import NetworkConfig
from detres.networks.norm import FrozenBatchNorm2d
from detres.tasks.start import read_start
from detres.weights.checkpoint import read_weights, save_weights
from detres.weights.foreign import read_backbone

SMALL = NetworkConfig(name="resnet18", width=0.125)
CROP = CropConfig(size=32, train_sides=(32, 40), test_side=36)


def write(path, network, architecture, names=("a", "b", "c")):
    write_classifier(
        path, network, architecture, class_names=names, preprocessing=MSRA, crop=CROP, source="a test"
    )


def start(model: ClassificationModelConfig, names: tuple[str, ...], seed: int = 0) -> ClassifierStart:
    return start_classifier(model, read_start(model.network, model.init), names, seed)


def same(first: nn.Module, second: nn.Module, name: str) -> bool:
    return torch.equal(first.state_dict()[name], second.state_dict()[name])


@pytest.mark.parametrize("freeze_at", range(5))
def test_frozen_stages_have_constant_batch_norm_and_no_gradient(freeze_at):
    network: Any = start(ClassificationModelConfig(network=SMALL, freeze_at=freeze_at), ("a", "b")).network
    for stage, name in enumerate(("1", "layer1", "layer2", "layer3", "layer4", "fc"), start=1):
        modules = [network.conv1, network.bn1] if name == "1" else [network.get_submodule(name)]
        norms = [m for module in modules for m in module.modules() if "BatchNorm" in type(m).__name__]
        trained = [p.requires_grad for module in modules for p in module.parameters()]
        if stage <= freeze_at:
            assert all(isinstance(norm, FrozenBatchNorm2d) for norm in norms)
            assert not any(trained)
        else:
            assert all(isinstance(norm, nn.BatchNorm2d) for norm in norms)
            assert all(trained)


def test_all_batch_norm_can_be_constant_while_the_convolutions_are_trained():
    network: Any = start(ClassificationModelConfig(network=SMALL, freeze_batch_norm=True), ("a",)).network
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert network.conv1.weight.requires_grad


def test_same_seed_gives_the_same_fresh_network():
    first, second, other = (
        start(ClassificationModelConfig(network=SMALL), ("a", "b"), seed).network for seed in (1, 1, 2)
    )
    assert same(first, second, "fc.weight")
    assert not same(first, other, "fc.weight")


@pytest.mark.parametrize(
    ("names", "taken_over"), [(("a", "b", "c"), True), (("a", "b"), False), (("c", "b", "a"), False)]
)
def test_classification_layer_is_taken_over_for_the_same_classes_only(tmp_path, names, taken_over):
    source = build_classifier(ClassifierArchitecture(network=SMALL), 3)
    write(tmp_path / "m.safetensors", source, ClassifierArchitecture(network=SMALL))
    model = ClassificationModelConfig(init=str(tmp_path / "m.safetensors"))
    started = start(model, names)
    assert (started.architecture.network, started.preprocessing) == (SMALL, MSRA)
    assert same(started.network, source, "conv1.weight")
    assert same(started.network, source, "fc.weight") == taken_over


def test_partial_initial_weights_need_permission(tmp_path):
    source = build_classifier(ClassifierArchitecture(network=SMALL), 3)
    write(tmp_path / "whole.safetensors", source, ClassifierArchitecture(network=SMALL))
    tensors, metadata = read_weights(tmp_path / "whole.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("layer4.1")}
    save_weights(tmp_path / "part.safetensors", kept, metadata)
    init = str(tmp_path / "part.safetensors")
    with pytest.raises(WeightsError, match=r"lacks layer4\.1\.conv1\.weight.*model\.init_partial: true"):
        start(ClassificationModelConfig(init=init), ("a", "b", "c"))
    ((level, note),) = start(ClassificationModelConfig(init=init, init_partial=True), ("a", "b", "c")).notes
    assert level == logging.INFO
    assert "layer4.1.conv1.weight" in note


def test_configuration_that_contradicts_the_initial_weights_is_refused(tmp_path):
    write(
        tmp_path / "m.safetensors",
        build_classifier(ClassifierArchitecture(network=SMALL), 3),
        ClassifierArchitecture(network=SMALL),
    )
    model = ClassificationModelConfig(
        network=NetworkConfig(name="resnet34"), init=str(tmp_path / "m.safetensors")
    )
    with pytest.raises(
        ConfigError, match=r"model\.network\.name is resnet34, but the weights .* have resnet18"
    ):
        start(model, ("a",))


@pytest.mark.parametrize(
    "architecture",
    [ClassifierArchitecture(network=SMALL), ClassifierArchitecture(network=SMALL, frozen_stages=3)],
)
def test_file_rebuilds_the_classifier(tmp_path, architecture):
    network = build_classifier(architecture, 3).eval()
    write(tmp_path / "m.safetensors", network, architecture)
    read, read_architecture, metadata = read_classifier(tmp_path / "m.safetensors")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(read(images), network(images))
    assert read_architecture == architecture
    assert metadata.class_names == ("a", "b", "c")
    assert crop_of(metadata) == CROP
    assert read_backbone(tmp_path / "m.safetensors").missing == ()


def test_trunk_of_another_source_starts_a_classifier(real_data):
    model = ClassificationModelConfig(
        init=str(real_data / "weights" / "resnet18-tv-conv1-layer3.safetensors"),
        init_partial=True,
        freeze_at=4,
    )
    started = start(model, tuple("abcde"))
    network: Any = started.network
    backbone = read_backbone(model.init or "")
    assert started.architecture.network.stride_in == "3x3"
    assert network.fc.out_features == 5
    for name in ("conv1.weight", "layer3.1.bn2.running_var", "layer4.0.downsample.0.weight"):
        assert torch.equal(network.state_dict()[name], backbone.tensors[name])
