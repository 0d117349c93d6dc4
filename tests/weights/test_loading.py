"""Loading: whole or refused, with the first tensors that differ; partial only where asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detres.errors import WeightsError
from detres.networks.config import NetworkConfig, NetworkName
from detres.networks.norm import freeze_batch_norm
from detres.networks.resnet import build_network
from detres.weights.loading import load_tensors


def network(name: NetworkName = "resnet18", classes: int = 5):
    return build_network(NetworkConfig(name=name, width=0.125), classes)


def test_whole_load_copies_every_tensor():
    source, target = network(), network()
    source.state_dict()["bn1.running_mean"].fill_(3.0)
    assert load_tensors(target, source.state_dict(), where="a") == []
    own = target.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in source.state_dict().items())


def test_counters_of_batch_norm_are_no_difference():
    source = freeze_batch_norm(network())
    assert load_tensors(network(), source.state_dict(), where="frozen to trained") == []
    assert load_tensors(source, network().state_dict(), where="trained to frozen") == []


def test_other_architecture_names_first_differing_tensors():
    target, before = network(), network().state_dict()
    target.load_state_dict(before)
    with pytest.raises(WeightsError) as caught:
        load_tensors(target, network("resnet50").state_dict(), where="r50.safetensors")
    message = str(caught.value)
    assert message.startswith("r50.safetensors: weights of another architecture")
    assert "layer1.0.conv1.weight is (8, 8, 1, 1), the network's (8, 8, 3, 3)" in message
    assert "unexpected layer1.0.conv3.weight" in message
    assert "\n" not in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_missing_is_refused_unless_partial():
    tensors = {
        name: tensor for name, tensor in network().state_dict().items() if not name.startswith("layer4")
    }
    with pytest.raises(WeightsError, match=r"missing layer4.0.conv1.weight, .* and 21 more"):
        load_tensors(network(), tensors, where="p")
    random = load_tensors(network(), tensors, where="p", partial=True)
    assert random == [
        name for name in network().state_dict() if name.startswith("layer4") and "num_batches" not in name
    ]


def test_partial_never_hides_a_shape_or_loads_nothing():
    with pytest.raises(WeightsError, match=r"fc.weight is \(7, 64\), the network's \(5, 64\)"):
        load_tensors(network(), network(classes=7).state_dict(), where="p", partial=True)
    with pytest.raises(WeightsError, match="missing weight, bias; unexpected other"):
        load_tensors(nn.Linear(2, 2), {"other": torch.zeros(1)}, where="p", partial=True)
    with pytest.raises(WeightsError, match="missing"):
        load_tensors(nn.Linear(2, 2), {}, where="p", partial=True)
