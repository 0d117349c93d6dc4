"""Residual networks against torchvision's, the paper's exact figures, and properties of the cut into two parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from detres.errors import UserError
from detres.networks.arithmetic import count_multiply_adds
from detres.networks.config import NetworkConfig, scale_channels
from detres.networks.norm import FrozenBatchNorm2d, freeze_batch_norm
from detres.networks.resnet import CaffeMaxPool, build_network, freeze_stages, split_network

# name, shortcut, stride: multiply-adds at 224 x 224 and parameters (Table 1, exact)
TABLE_1 = [
    ("resnet18", "B", "1x1", 1_814_073_344, 11_689_512),
    ("resnet18", "A", "1x1", 1_794_805_760, 11_515_688),
    ("plain18", "B", "1x1", 1_794_805_760, 11_515_688),
    ("resnet34", "B", "1x1", 3_663_761_408, 21_797_672),
    ("resnet34", "A", "1x1", 3_644_493_824, 21_623_848),
    ("plain34", "B", "1x1", 3_644_493_824, 21_623_848),
    ("resnet50", "B", "1x1", 3_857_973_248, 25_557_032),
    ("resnet50", "B", "3x3", 4_089_184_256, 25_557_032),
    ("resnet101", "B", "1x1", 7_570_194_432, 44_549_160),
    ("resnet101", "B", "3x3", 7_801_405_440, 44_549_160),
    ("resnet152", "B", "1x1", 11_282_415_616, 60_192_808),
    ("resnet152", "B", "3x3", 11_513_626_624, 60_192_808),
]
IMAGE = (1, 3, 224, 224)
# the paper's parameter counts in millions (Table 6)
CIFAR = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7, 1202: 19.4}


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def small(name: str, **options: object) -> Any:  # its children are what the test knows them to be
    """A narrow network with statistics and BN weights of its own, in evaluation mode."""
    network = build_network(NetworkConfig.model_validate({"name": name, "width": 0.125, **options}), 5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            assert module.running_mean is not None
            nn.init.normal_(module.running_mean, std=0.2)
            assert module.running_var is not None
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network.eval()


@pytest.mark.parametrize(("name", "shortcut", "stride_in", "operations", "count"), TABLE_1)
def test_table_1(name: str, shortcut: str, stride_in: str, operations: int, count: int) -> None:
    """Truth: the exact figures behind the paper's Table 1."""
    config = NetworkConfig.model_validate({"name": name, "shortcut": shortcut, "stride_in": stride_in})
    with torch.device("meta"):
        network = build_network(config, 1000)
    assert count_multiply_adds(network, IMAGE) == operations
    assert parameters(network) == count


@pytest.mark.parametrize("depth", CIFAR)
def test_cifar_parameters(depth: int) -> None:
    """Truth: Table 6, and the count by hand (9 weights a channel pair, 2 BN values a channel, fc)."""
    with torch.device("meta"):
        network = build_network(NetworkConfig.model_validate({"name": f"cifar_resnet{depth}"}), 10)
    n = (depth - 2) // 6
    convolutions = 9 * (
        3 * 16 + 2 * n * 16**2 + 16 * 32 + (2 * n - 1) * 32**2 + 32 * 64 + (2 * n - 1) * 64**2
    )
    norms = 2 * (16 + 2 * n * (16 + 32 + 64))
    assert parameters(network) == convolutions + norms + 650
    assert round(parameters(network) / 1e6, 2 if depth < 100 else 1) == CIFAR[depth]
    if depth <= 110:
        with torch.device("meta"):
            plain = build_network(NetworkConfig.model_validate({"name": f"cifar_plain{depth}"}), 10)
        assert parameters(plain) == parameters(network)
        assert [tuple(value.shape) for value in plain.parameters()] == [
            tuple(value.shape) for value in network.parameters()
        ]


@pytest.mark.parametrize("stride_in", ["1x1", "3x3"])
@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_equals_torchvision(depth: int, stride_in: str) -> None:
    """Truth: torchvision's network with the same weights; its strides are moved for the paper's position."""
    peer = getattr(torchvision.models, f"resnet{depth}")(num_classes=7).eval()
    for name, buffer in peer.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.8, 1.2)
        elif name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    if stride_in == "1x1":
        for module in peer.modules():
            if hasattr(module, "conv3") and module.stride == 2:
                module.conv1.stride, module.conv2.stride = (2, 2), (1, 1)
    config = NetworkConfig.model_validate({"name": f"resnet{depth}", "stride_in": stride_in})
    with torch.device("meta"):
        ours = build_network(config, 7)
    assert ours.state_dict().keys() == peer.state_dict().keys()
    assert list(ours.state_dict()) == list(peer.state_dict())  # the order of torchvision's files too
    ours.load_state_dict(peer.state_dict(), assign=True)
    images = torch.randn(2, 3, 64, 61)
    with torch.no_grad():
        expected, found = peer(images), ours.eval()(images)
        frozen = freeze_batch_norm(ours)(images)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (frozen - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_option_a_worked_by_hand() -> None:
    """Truth: every second pixel, zero channels appended (paper) or on both sides (published CIFAR networks)."""
    maps = torch.arange(2 * 3 * 5, dtype=torch.float32).view(1, 2, 3, 5) + 1
    for place, before in (("after", 0), ("both", 1)):
        config = NetworkConfig.model_validate({"name": "cifar_resnet20", "zero_channels": place})
        block = build_network(config, 10).layer2[0]
        block.zeros = (before, 2 - before)
        for parameter in block.parameters():
            nn.init.zeros_(parameter)
        shortcut = block._shortcut(maps)
        assert shortcut.shape == (1, 4, 2, 3)
        assert torch.equal(shortcut[0, before, :, :], torch.tensor([[1.0, 3, 5], [11, 13, 15]]))
        assert shortcut.sum() == maps[:, :, ::2, ::2].sum()
    wide = torch.randn(1, 16, 8, 8)
    assert build_network(config, 10).layer2[0]._shortcut(wide)[:, 8:24].equal(wide[:, :, ::2, ::2])


def test_option_c_projects_everywhere_and_plain_adds_nothing() -> None:
    """Truth: §4.1 and Figure 3."""
    projections = {}
    for name, shortcut in (("resnet18", "A"), ("resnet18", "B"), ("resnet18", "C"), ("plain18", "B")):
        names = small(name, shortcut=shortcut).state_dict()
        projections[name, shortcut] = sum(key.endswith("downsample.0.weight") for key in names)
    assert list(projections.values()) == [0, 3, 8, 0]
    plain = small("plain18")
    maps = torch.randn(1, 8, 6, 6)
    block = plain.layer1[0]
    stacked = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(maps)))))
    assert torch.equal(block(maps), F.relu(stacked))


def test_caffe_pool() -> None:
    """Truth: a loop over windows that start every second pixel and are cut at the border."""
    for height, width in [(1, 1), (1, 5), (2, 2), (3, 4), (7, 8)]:
        maps = torch.rand(2, 3, height, width)
        pooled = CaffeMaxPool()(maps)
        lines, columns = range(0, max(1, height - 1), 2), range(0, max(1, width - 1), 2)
        expected = torch.stack(
            [maps[..., y : y + 3, x : x + 3].amax(dim=(2, 3)) for y in lines for x in columns], dim=-1
        )
        assert torch.equal(pooled, expected.view(2, 3, len(lines), len(columns)))


@pytest.mark.parametrize("pool", ["caffe", "torchvision"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "plain18", "vgg16"])
def test_split_computes_what_the_network_computes(name: str, pool: str) -> None:
    """Truth: the whole network; its state dict divides by key and the parts share its modules."""
    network = small(name, pool=pool)
    trunk, head = split_network(network)
    images = torch.randn(2, 3, 224 if name == "vgg16" else 70, 224 if name == "vgg16" else 90)
    with torch.no_grad():
        maps = trunk(images)
        assert maps.shape[1] == trunk.out_channels
        if name == "vgg16":
            regions, expected = (
                network.features[-1](maps),
                network.classifier[:-2](network.features(images).flatten(1)),
            )
        else:
            regions, expected = maps, network.features(images).mean(dim=(2, 3))
        features = head(regions)
        assert features.shape == (2, head.out_channels)
        torch.testing.assert_close(features, expected, rtol=1e-6, atol=1e-6)
        empty = head(torch.zeros(0, trunk.out_channels, head.region_size, head.region_size))
    assert empty.shape == (0, head.out_channels)
    whole, parts = network.state_dict(), {**trunk.state_dict(), **head.state_dict()}
    assert parts.keys() <= whole.keys()
    assert not trunk.state_dict().keys() & head.state_dict().keys()
    assert {key.split(".")[0] for key in whole.keys() - parts.keys()} == {
        "classifier" if name == "vgg16" else "fc"
    }
    assert all(parts[key].data_ptr() == whole[key].data_ptr() for key in parts)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (16, 16), (33, 100)])
@pytest.mark.parametrize(
    ("name", "pool"), [("resnet50", "caffe"), ("resnet18", "torchvision"), ("vgg16", "caffe")]
)
def test_trunk_takes_any_size(name: str, pool: str, height: int, width: int) -> None:
    """Truth: a side of about 1 / 16, at least 1."""
    trunk, _ = split_network(small(name, pool=pool))
    maps = trunk(torch.randn(1, 3, height, width))
    assert abs(maps.shape[2] - height / 16) <= 1
    assert abs(maps.shape[3] - width / 16) <= 1
    assert maps.isfinite().all()


def test_no_region_has_a_gradient_of_zero() -> None:
    """Truth: the gradient of an empty sum."""
    network = freeze_batch_norm(small("resnet50"))
    _, head = split_network(network)
    regions = torch.zeros(0, 128, 14, 14, requires_grad=True)
    head(regions).sum().backward()
    assert regions.grad is not None
    assert head.layer4[0].conv1.weight.grad.abs().sum() == 0


@pytest.mark.parametrize("name", ["resnet18", "vgg16"])
def test_freeze_stages(name: str) -> None:
    """Truth: `freeze_at: 2` holds conv1 and conv2_x (VGG: up to conv2_2) and nothing else."""
    trunk, _ = split_network(small(name))
    freeze_stages(trunk, 0)
    assert all(parameter.requires_grad for parameter in trunk.parameters())
    freeze_stages(trunk, 2)
    frozen = {key.rsplit(".", 1)[0] for key, value in trunk.named_parameters() if not value.requires_grad}
    free = {key.rsplit(".", 1)[0] for key, value in trunk.named_parameters() if value.requires_grad}
    if name == "vgg16":
        assert frozen == {f"features.{index}" for index in (0, 2, 5, 7)}
    else:
        assert {key.split(".")[0] for key in frozen} == {"conv1", "bn1", "layer1"}
    assert not frozen & free
    freeze_stages(trunk, 5)
    assert not any(parameter.requires_grad for parameter in trunk.parameters())


@pytest.mark.parametrize("depth", [16, 19])
def test_vgg_equals_torchvision(depth: int) -> None:
    """Truth: torchvision's network with the same weights (narrow by giving torchvision its own layer list)."""
    layers = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}[depth]
    plan: list[int | str] = []
    for convolutions, channels in zip(layers, (8, 16, 32, 64, 64), strict=True):
        plan += [channels] * convolutions + ["M"]
    peer = torchvision.models.VGG(torchvision.models.vgg.make_layers(plan), num_classes=5).eval()
    peer.classifier[0] = nn.Linear(64 * 49, 512)
    peer.classifier[3], peer.classifier[6] = nn.Linear(512, 512), nn.Linear(512, 5)
    ours = small(f"vgg{depth}")
    ours.load_state_dict(peer.state_dict())
    images = torch.randn(2, 3, 97, 70)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), peer(images), rtol=1e-5, atol=1e-6)
        drawn = []
        for network in (ours.train(), peer.train()):  # with the dropout of fc6 and fc7
            torch.manual_seed(1)
            drawn.append(network(images))
        torch.testing.assert_close(*drawn, rtol=1e-5, atol=1e-6)
        assert not torch.equal(drawn[0], ours(images)), "another draw, another result"


def test_vgg_counts() -> None:
    """Truth: torchvision's modules, the paper's 19.6e9 for VGG-19, and VGG-16's 15.5e9."""
    for depth, operations in ((16, 15_470_264_320), (19, 19_632_062_464)):
        with torch.device("meta"):
            ours = build_network(NetworkConfig.model_validate({"name": f"vgg{depth}"}), 1000)
            peer = getattr(torchvision.models, f"vgg{depth}")()
        assert count_multiply_adds(ours, IMAGE) == count_multiply_adds(peer, IMAGE) == operations
        shapes = {key: value.shape for key, value in peer.state_dict().items()}
        assert {key: value.shape for key, value in ours.state_dict().items()} == shapes


def test_generator_makes_the_weights_repeatable() -> None:
    """Truth: itself; and He's variance 2 / fan out."""
    config = NetworkConfig.model_validate({"name": "resnet18", "width": 0.25})
    one, two = (build_network(config, 5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    weight = one.layer4[1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * weight.shape[0])) ** 0.5, rel=0.02)


def test_config() -> None:
    """Truth: the rules of names and §4.2's options; widths are multiples of 8, at least 8."""
    assert NetworkConfig.model_validate({"name": "cifar_resnet20"}).shortcut == "A"
    assert NetworkConfig.model_validate({"name": "cifar_resnet20", "shortcut": "B"}).shortcut == "B"
    assert NetworkConfig.model_validate({"name": "resnet50"}).shortcut == "B"
    assert [scale_channels(64, width) for width in (0.01, 0.2, 0.5, 1.0, 1.5)] == [8, 16, 32, 64, 96]
    with pytest.raises(ValueError, match="resnet51"):
        NetworkConfig.model_validate({"name": "resnet51"})
    with pytest.raises(ValueError, match="conv5_x"):
        split_network(build_network(NetworkConfig.model_validate({"name": "cifar_resnet20"}), 10))
    assert not issubclass(ValueError, UserError)


def test_frozen_network_has_no_trainable_norm() -> None:
    """Truth: Appendix A: BN is fixed in fine-tuning; keys stay, so that weights go in and out."""
    network = small("resnet50")
    keys = {key for key in network.state_dict() if not key.endswith("num_batches_tracked")}
    frozen = freeze_batch_norm(network)
    assert set(frozen.state_dict()) == keys
    assert not any("bn" in name or "downsample.1" in name for name, _ in frozen.named_parameters())
    assert isinstance(frozen.layer1[0].downsample[1], FrozenBatchNorm2d)


@torch.no_grad()
def test_vgg_slides_its_first_layer_over_larger_images() -> None:
    """Truth: `forward` at 224 px, and its mean over the four windows of 7 x 7 cells that a picture of 256 px has."""
    network = small("vgg16")
    for layer in network.classifier:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    images = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(network.dense(images), network(images))
    larger = torch.randn(1, 3, 256, 256)
    maps = network.features(larger)  # (1, C, 8, 8)
    windows = [maps[:, :, y : y + 7, x : x + 7] for y in (0, 1) for x in (0, 1)]
    expected = torch.stack([network.classifier(window.flatten(1)) for window in windows]).mean(dim=0)
    torch.testing.assert_close(network.dense(larger), expected)
