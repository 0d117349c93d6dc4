"""Layer responses, signals and gradients against a network run by hand, picture by picture, without hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detres.classification.classifier import build_classifier, write_classifier
from detres.classification.config import ClassifierArchitecture
from detres.classification.responses import layer_responses, responses_of_weights
from detres.data.config import CropConfig
from detres.data.preprocessing import TORCHVISION
from detres.data.shapes import shapes_labels
from detres.errors import DataError
from detres.networks.config import NetworkConfig
from detres.networks.resnet import build_network

CLASSES = 3


def lively(name: str, **options: object) -> Any:
    """Statistics of its own; in float64, in which the hand-made sums are exact enough."""
    network = build_network(NetworkConfig.model_validate({"name": name, "width": 0.5, **options}), CLASSES)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return network.double().eval()


def by_hand(network: Any, image: Tensor, label: Tensor) -> list[tuple[str, Tensor, Tensor, Tensor]]:
    """Of one picture: name, signal that enters, response, gradient of the loss by the response; nothing in place."""
    noted: list[tuple[str, Tensor, Tensor]] = []

    def layer(name: str, conv: nn.Module, norm: nn.Module, maps: Tensor) -> Tensor:
        response = norm(conv(maps))
        noted.append((name, maps, response))
        return response

    maps = F.relu(layer("conv1", network.conv1, network.bn1, image))
    maps = network.maxpool(maps)
    for stage in range(1, network.num_stages + 1):
        for place, block in enumerate(network.get_submodule(f"layer{stage}")):
            inner = maps
            for number in range(1, block.depth + 1):
                name = f"layer{stage}.{place}.conv{number}"
                inner = layer(name, getattr(block, f"conv{number}"), getattr(block, f"bn{number}"), inner)
                inner = F.relu(inner) if number < block.depth else inner
            maps = F.relu(inner if block.shortcut == "none" else inner + block._shortcut(maps))
    loss = F.cross_entropy(network.fc(maps.mean((2, 3))), label)
    gradients = torch.autograd.grad(loss, [response for *_, response in noted])
    return [(*entry, gradient) for entry, gradient in zip(noted, gradients, strict=True)]


@pytest.mark.parametrize(
    ("name", "options"),
    [("cifar_plain20", {}), ("cifar_resnet20", {}), ("resnet18", {"shortcut": "C"}), ("resnet50", {})],
)
def test_responses_are_those_of_the_images_one_by_one(name, options):
    network = lively(name, **options)
    images = torch.randn(5, 3, 40, 36, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 1, 0])
    network.fc.weight.requires_grad_(False)
    found = layer_responses(network, [(images[:3], labels[:3]), (images[3:], labels[3:])])
    pictures = [by_hand(network, images[place, None], labels[place, None]) for place in range(5)]
    assert [layer.layer for layer in found] == [entry[0] for entry in pictures[0]]
    for layer, entries in zip(found, zip(*pictures, strict=True), strict=True):
        responses = torch.cat([entry[2].detach() for entry in entries])
        signals = torch.cat([entry[1].detach() for entry in entries])
        gradients = torch.stack([entry[3].norm() for entry in entries])
        assert layer.deviation == pytest.approx(float(responses.std(correction=0)), rel=1e-5)
        assert layer.forward_variance == pytest.approx(float(signals.var(correction=0)), rel=1e-5)
        assert layer.gradient_norm == pytest.approx(float(gradients.mean()), rel=1e-9)
    required = {parameter.requires_grad for parameter in network.parameters()}
    assert required == {True, False}  # as they were
    assert all(parameter.grad is None for parameter in network.parameters())
    kernels = {layer.kernel for layer in found}
    assert kernels == ({3} if name.startswith("cifar") else {7, 3} if name == "resnet18" else {7, 3, 1})


def test_vgg_has_responses_without_norms():
    network = build_network(NetworkConfig(name="vgg16", width=0.125), CLASSES).double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    found = layer_responses(network, [(images, torch.tensor([0, 2]))])
    assert [layer.layer for layer in found[:2]] == ["features.0", "features.2"]
    assert len(found) == 13
    with torch.no_grad():
        expected = network.features[0](images)  # type: ignore[operator]
    assert found[0].deviation == pytest.approx(float(expected.std(correction=0)), rel=1e-5)


def test_nothing_to_look_at_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        layer_responses(lively("cifar_resnet20"), [])


def test_weights_files_whose_norms_are_constant(tmp_path):
    """Constant BN is folded into convolutions; the responses are those of the same network before."""
    images = shapes_labels("train", 12, side=32)
    found = []
    for frozen in (False, True):
        architecture = ClassifierArchitecture(
            network=NetworkConfig(name="cifar_resnet20", width=0.5), frozen_batch_norm=frozen
        )
        network = build_classifier(architecture, len(images.class_names), torch.Generator().manual_seed(0))
        write_classifier(
            tmp_path / "w.safetensors",
            network,
            architecture,
            class_names=images.class_names,
            preprocessing=TORCHVISION,
            crop=CropConfig(size=32, train_sides=None, test_side=None),
            source="a test",
        )
        name, layers = responses_of_weights(
            tmp_path / "w.safetensors", images, num_images=10, batch=4, workers=0, quiet=True
        )
        assert name == "cifar_resnet20"
        found.append(layers)
    assert found[0] == found[1]
    assert len(found[0]) == 19
    other = shapes_labels("train", 12, side=32)
    other = type(other)(other.paths, other.labels, ("x", *other.class_names[1:]), other.source)
    with pytest.raises(DataError, match=r"class names differ: .*; unknown: x"):
        responses_of_weights(tmp_path / "w.safetensors", other, workers=0, quiet=True)
