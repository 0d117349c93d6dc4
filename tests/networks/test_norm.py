"""Frozen BN, its folding, and pooled statistics, against PyTorch's layer and float64 sums."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detres.networks.config import NetworkConfig
from detres.networks.norm import (
    FrozenBatchNorm2d,
    convolve,
    fold_batch_norm,
    freeze_batch_norm,
    rescale_folded_convolutions,
    unfreeze_batch_norm,
    update_batch_norm_statistics,
)
from detres.networks.resnet import build_network


def random_norm(channels: int, eps: float) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps)
    nn.init.uniform_(norm.weight, -1.0, 1.5)
    nn.init.normal_(norm.bias)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.0, 2.0)
    return norm.eval()


@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_frozen_equals_evaluation_mode(eps: float) -> None:
    """Truth: nn.BatchNorm2d in evaluation mode, values and gradients, whatever the mode of the frozen one."""
    norm = random_norm(6, eps).double()
    frozen = freeze_batch_norm(norm)
    assert isinstance(frozen, FrozenBatchNorm2d)
    assert list(frozen.parameters()) == []
    maps = torch.randn(3, 6, 5, 4, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(maps)
    expected = torch.autograd.grad(norm(maps), maps, upstream)[0]
    for training in (False, True):
        found = frozen.train(training)(maps)
        torch.testing.assert_close(found, norm(maps), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(torch.autograd.grad(found, maps, upstream)[0], expected)


def test_unfreezing_undoes_freezing() -> None:
    """Truth: the network before it was frozen, in values, state and modes."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), random_norm(4, 1e-2), nn.ReLU())
    before = copy.deepcopy(network)
    assert unfreeze_batch_norm(freeze_batch_norm(network)) is network
    norm = network[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert (norm.eps, norm.training) == (1e-2, True)  # a frozen norm is made in training mode
    maps = torch.randn(2, 3, 5, 5)
    assert torch.equal(network.eval()(maps), before.eval()(maps))
    for key, value in before.state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key
    assert isinstance(unfreeze_batch_norm(freeze_batch_norm(random_norm(2, 1e-5))), nn.BatchNorm2d)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 2), (7, 2)])
def test_folding_has_the_same_gradients(kernel: int, stride: int) -> None:
    """Truth: convolution, then nn.BatchNorm2d in evaluation mode; gradients of weight and input in float64."""
    conv = nn.Conv2d(4, 6, kernel, stride, kernel // 2, bias=False).double()
    norm = random_norm(6, 1e-5).double()
    frozen = freeze_batch_norm(norm)
    maps = torch.randn(2, 4, 9, 8, dtype=torch.float64, requires_grad=True)
    expected, found = norm(conv(maps)), convolve(conv, frozen, maps)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    inputs = (maps, conv.weight)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, upstream),
        torch.autograd.grad(expected, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    assert torch.equal(convolve(conv, norm, maps), expected)


def test_convolve_under_autocast() -> None:
    """Truth: the float32 result, to the precision of bfloat16; the result is bfloat16."""
    conv, frozen = nn.Conv2d(4, 6, 3, bias=False), freeze_batch_norm(random_norm(6, 1e-5))
    maps = torch.randn(1, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = convolve(conv, frozen, maps)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), convolve(conv, frozen, maps), rtol=0.03, atol=0.05)


def test_loads_a_batch_norm_with_its_counter() -> None:
    """Truth: the values loaded; the counter of batches is left out, any other key is refused."""
    norm = random_norm(3, 1e-5)
    frozen = FrozenBatchNorm2d(3)
    frozen.load_state_dict(norm.state_dict())
    assert norm.running_mean is not None
    assert torch.equal(frozen.running_mean, norm.running_mean)
    with pytest.raises(RuntimeError, match="Unexpected"):
        frozen.load_state_dict({**norm.state_dict(), "momentum": torch.zeros(1)})
    assert freeze_batch_norm(frozen) is frozen


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "cifar_resnet20"])
def test_folded_copy(name: str) -> None:
    """Truth: the frozen network itself, which stays as it was."""
    network = build_network(NetworkConfig.model_validate({"name": name, "width": 0.25}), 5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.load_state_dict(random_norm(module.num_features, 1e-5).state_dict())
    frozen = freeze_batch_norm(network.double().eval())
    before = {key: value.clone() for key, value in frozen.state_dict().items()}
    copy = fold_batch_norm(frozen)
    images = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    torch.testing.assert_close(copy(images), frozen(images))
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in copy.modules())
    assert all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())


def tiny() -> Any:  # its children are what the test knows them to be
    return build_network(NetworkConfig.model_validate({"name": "resnet18", "width": 0.125}), 3)


def float64_moments(layers: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel over all images, from the sums of the values themselves."""
    values = torch.cat([maps.double().transpose(0, 1).flatten(1) for maps in layers], dim=1)
    mean = values.mean(1)
    return mean, ((values - mean[:, None]) ** 2).mean(1)


@pytest.mark.parametrize("training", [True, False])
def test_pooled_statistics_of_the_first_layer(training: bool) -> None:
    """Truth: moments of conv1's output over all images in float64; batches of unequal size and shape weigh right."""
    network = tiny().train(training)
    batches = [torch.randn(3, 3, 40, 33), 3 * torch.randn(1, 3, 64, 20) + 1, torch.randn(2, 3, 40, 33) - 2]
    assert update_batch_norm_statistics(network, iter(batches)) == 6
    with torch.no_grad():
        mean, variance = float64_moments([network.conv1(batch) for batch in batches])
    torch.testing.assert_close(network.bn1.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(network.bn1.running_var.double(), variance, rtol=1e-5, atol=1e-6)
    assert network.training is training
    assert network.bn1.training is training
    assert network.bn1.momentum == 0.1
    assert network.bn1.num_batches_tracked == 0


def test_pooled_statistics_of_one_batch_are_the_batch_s() -> None:
    """Truth: one batch of all images: afterwards evaluation mode computes what training mode does, exactly or not."""
    images = torch.randn(4, 3, 64, 64)
    expected = tiny().train()
    state = expected.state_dict()
    with torch.no_grad():
        logits = expected(images)
    for exact, batches in ((False, [images]), (True, [images]), (True, list(images.split(1)))):
        network = tiny()
        network.load_state_dict(state)
        assert update_batch_norm_statistics(network, batches, exact=exact) == 4
        with torch.no_grad():
            torch.testing.assert_close(network.eval()(images), logits, rtol=1e-3, atol=1e-5)


def moments_of_one_batch(network: nn.Module, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of what enters each BN layer, all images in one batch in training mode, in float64."""
    shadow = copy.deepcopy(network).double().train()
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str, norm: nn.BatchNorm2d) -> None:
        norm.register_forward_pre_hook(lambda _, inputs: found.update({name: float64_moments([inputs[0]])}))

    for name, module in shadow.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            watch(name, module)
    with torch.no_grad():
        shadow(images.double())
    return found


def distances(network: nn.Module, truth: dict[str, tuple[Tensor, Tensor]]) -> list[float]:
    """Of each layer, the larger of the means' distance in deviations and the variances' as a share; worst channel."""
    found = []
    for name, (mean, variance) in truth.items():
        norm: Any = network.get_submodule(name)
        of_means = (norm.running_mean.double() - mean).abs() / variance.sqrt()
        of_variances = (norm.running_var.double() - variance).abs() / variance
        found.append(float(torch.maximum(of_means, of_variances).max()))
    return found


@pytest.mark.parametrize(
    ("name", "layers"), [("resnet18", 20), ("plain18", 17), ("resnet50", 53), ("cifar_resnet20", 19)]
)
def test_exact_statistics_equal_one_batch_of_all_images_in_every_layer(name: str, layers: int) -> None:
    """Truth: all images in one batch, in float64; the tenth image is unlike the others, and the batches are uneven.

    One pass is exact in the first layer only; a moving average of PyTorch's, gone through five times, in none.
    """
    images = torch.randn(10, 3, 48, 48)
    images[9] = 4 * images[9] + 3
    batches = [images[:4], images[4:9], images[9:]]
    fresh = build_network(NetworkConfig.model_validate({"name": name, "width": 0.25}), 3)
    truth = moments_of_one_batch(fresh, images)
    assert len(truth) == layers

    exact = copy.deepcopy(fresh)
    update_batch_norm_statistics(exact, batches, exact=True)
    assert max(distances(exact, truth)) <= 1e-5

    one_pass = copy.deepcopy(fresh)
    update_batch_norm_statistics(one_pass, batches)
    first, *others = distances(one_pass, truth)
    assert first <= 1e-5
    assert min(others) > 1e-3

    moving = copy.deepcopy(fresh).train()
    with torch.no_grad():
        for batch in batches * 5:
            moving(batch)
    assert min(distances(moving, truth)) > 1e-3


def test_nothing_to_pool_is_an_error() -> None:
    """Truth: no silent network without statistics."""
    with pytest.raises(ValueError, match="no images"):
        update_batch_norm_statistics(tiny(), [])
    with pytest.raises(ValueError, match="no images"):
        update_batch_norm_statistics(tiny(), [], exact=True)
    with pytest.raises(ValueError, match="BatchNorm2d"):
        update_batch_norm_statistics(freeze_batch_norm(tiny()), [torch.zeros(1, 3, 8, 8)])


def test_frozen_on_half_precision_maps() -> None:
    """Truth: the same affine map in float32; the dtype of the maps is kept."""
    frozen: Any = freeze_batch_norm(random_norm(3, 1e-5))
    maps = torch.randn(1, 3, 4, 4)
    found = frozen(maps.bfloat16())
    assert found.dtype == torch.bfloat16
    scale, offset = frozen.scale_and_offset()
    expected = F.conv2d(maps, torch.diag(scale)[:, :, None, None], offset)
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.1)


def test_rescaled_convolutions_compute_the_same_and_move_as_the_unfolded_ones() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(5, 8, 3, bias=False), FrozenBatchNorm2d(8)
    layer = nn.Sequential(conv, norm).double()
    norm.weight.copy_(torch.full((8,), 1.00001**0.5))  # scale 1: eps is 1e-5
    norm.running_var.fill_(1.0)
    norm.running_mean.normal_()
    norm.bias.normal_()
    with torch.no_grad():
        conv.weight *= 0.1
        conv.weight[3] = 0  # a filter that is switched off
    before, folded_conv = copy.deepcopy(layer), copy.deepcopy(conv)
    before[0] = folded_conv
    assert rescale_folded_convolutions(layer) == 1

    maps = torch.randn(2, 5, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(layer(maps), before(maps))
    lengths = conv.weight.detach().flatten(1).norm(dim=1)
    wanted = torch.full((8,), 2**0.5, dtype=torch.float64)
    wanted[3] = 0
    torch.testing.assert_close(lengths, wanted)

    # A step of SGD moves weight * scale by scale^2 of what it would have moved: d/dw = scale * d/d(weight * scale).
    for each in (layer, before):
        each(maps).square().sum().backward()
    scale, _ = norm.scale_and_offset()
    assert conv.weight.grad is not None
    assert folded_conv.weight.grad is not None
    moved = conv.weight.grad * scale[:, None, None, None]
    torch.testing.assert_close(moved, folded_conv.weight.grad * scale[:, None, None, None] ** 2)


def test_norms_with_a_scale_of_their_own_are_not_rescaled() -> None:
    torch.manual_seed(0)
    scaled, fresh = FrozenBatchNorm2d(4), FrozenBatchNorm2d(4)
    scaled.weight[2] = 0.5
    scaled.bias.fill_(1.0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), scaled, nn.Conv2d(4, 4, 1, bias=False), fresh)
    before = copy.deepcopy(network.state_dict())
    assert rescale_folded_convolutions(network) == 0
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
