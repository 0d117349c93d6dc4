"""The groups of SGD, AdamW, clipping and averaging against cases worked by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detres.errors import UserError
from detres.training.optimizer import WeightAverage, build_optimizer, clip_gradients, gradient_norm, set_rate


def line(weight: float, bias: float) -> nn.Linear:
    """Weight * input + bias, one number each."""
    module = nn.Linear(1, 1)
    nn.init.constant_(module.weight, weight)
    nn.init.constant_(module.bias, bias)
    return module


def test_bias_has_twice_the_rate_and_no_decay() -> None:
    network = line(2.0, 3.0)
    sgd = build_optimizer(
        network, rate=0.1, momentum=0.5, weight_decay=0.01, bias_lr_factor=2.0, bias_weight_decay=0.0
    )
    for _ in range(2):
        network.weight.grad = torch.ones(1, 1)
        network.bias.grad = torch.ones(1)
        sgd.step()
    # weight: g1 = 1 + 0.02 = 1.02, w = 1.898; g2 = 1.01898 + 0.5 * 1.02 = 1.52898, w = 1.745102
    assert network.weight.item() == pytest.approx(1.745102, abs=1e-6)
    # bias: 3 - 0.2 * 1 - 0.2 * (1 + 0.5)
    assert network.bias.item() == pytest.approx(2.5, abs=1e-6)


def test_adamw_by_hand() -> None:
    network = line(2.0, 3.0)
    adamw = build_optimizer(
        network, rate=0.1, momentum=0.5, weight_decay=0.3, bias_weight_decay=0.0, kind="adamw"
    )
    for gradient in (1.0, 4.0):
        network.weight.grad, network.bias.grad = torch.full((1, 1), gradient), torch.full((1,), gradient)
        adamw.step()
    # corrected averages after two steps: (0.25 + 0.5 * 4) / 0.75 = 3, (0.000999 + 0.001 * 16) / 0.001999 = 8.5038
    second = 0.1 * 3.0 / 8.5037519**0.5
    assert network.bias.item() == pytest.approx(3 - 0.1 - second, abs=1e-6)
    # the decay, 0.1 * 0.3 of the weight, is taken off before each step and does not pass through the averages
    assert network.weight.item() == pytest.approx((2 * 0.97 - 0.1) * 0.97 - second, abs=1e-6)


def test_decay_of_biases_is_that_of_weights_unless_said() -> None:
    sgd = build_optimizer(line(1, 1), rate=0.1, momentum=0.0, weight_decay=0.3)
    assert [group["weight_decay"] for group in sgd.param_groups] == [0.3, 0.3]


def test_set_rate_keeps_the_factor() -> None:
    sgd = build_optimizer(line(1, 1), rate=0.1, momentum=0.0, weight_decay=0.0, bias_lr_factor=2.0)
    assert [group["lr"] for group in sgd.param_groups] == [0.1, 0.2]
    set_rate(sgd, 1.0)
    assert [group["lr"] for group in sgd.param_groups] == [1.0, 2.0]


def test_frozen_parameters_are_left_out() -> None:
    network = nn.Sequential(line(1, 1), nn.BatchNorm2d(2))
    network[0].requires_grad_(False)
    sgd = build_optimizer(network, rate=0.1, momentum=0.0, weight_decay=0.0)
    assert [group["params"] for group in sgd.param_groups] == [[network[1].weight], [network[1].bias]]
    with pytest.raises(UserError, match="nothing is left to train"):
        build_optimizer(network.requires_grad_(False), rate=0.1, momentum=0.0, weight_decay=0.0)


@pytest.mark.parametrize(("limit", "expected"), [(1.0, (0.6, 0.8)), (10.0, (3.0, 4.0))])
def test_clipping_by_the_norm_of_the_whole_gradient(limit: float, expected: tuple[float, float]) -> None:
    network = line(0, 0)
    sgd = build_optimizer(network, rate=0.1, momentum=0.0, weight_decay=0.0)
    network.weight.grad, network.bias.grad = torch.full((1, 1), 3.0), torch.full((1,), 4.0)
    norm = gradient_norm(sgd)
    assert norm.item() == pytest.approx(5.0)
    clip_gradients(sgd, norm, limit)
    assert (network.weight.grad.item(), network.bias.grad.item()) == pytest.approx(expected, abs=1e-5)


def test_norm_without_gradients_is_zero() -> None:
    assert gradient_norm(build_optimizer(line(1, 1), rate=0.1, momentum=0.0, weight_decay=0.0)).item() == 0.0


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line, self.norm = line(1.0, 0.0), nn.BatchNorm1d(1)


def test_average_by_hand() -> None:
    network = Normed()
    average = WeightAverage(network, 0.25)
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
    for step, weight in enumerate((3.0, 5.0), start=1):
        nn.init.constant_(network.line.weight, weight)
        network.norm.load_state_dict({**network.norm.state_dict(), "running_mean": torch.tensor([weight])})
        average.update(network, step)
    saved = average.network.state_dict()
    # d = min(1/4, 2/11) = 2/11: 1 -> 2/11 + 27/11 = 29/11; d = min(1/4, 3/12) = 1/4: 29/44 + 15/4 = 194/44
    assert saved["line.weight"].item() == pytest.approx(194 / 44, abs=1e-6)
    assert saved["norm.running_mean"].item() == 5.0
    assert not average.network.training
