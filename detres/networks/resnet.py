"""All residual networks and their plain twins, built from one block, and their split into trunk and head.

He et al. 2015, §3.3, Table 1, Figure 5 (bottleneck), §4.1 (options A, B, C), §4.2 (CIFAR-10); Appendix A (the split).

Glossary: N images, R regions, C channels, H and W the sides of an image, h and w those of a map. conv1, layer1, ...,
layer4 (torchvision's names) are the paper's conv1, conv2_x, ..., conv5_x.
"""

# pyright: reportUnknownMemberType=false
# because torch leaves some methods of Tensor partly untyped.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detres.networks.config import NetworkConfig, Pool, Shortcut, StrideIn, ZeroChannels, scale_channels
from detres.networks.initialization import initialize
from detres.networks.norm import convolve, fold_norm
from detres.networks.vgg import VGG, VGGHead, VGGTrunk

LinearPooling = Callable[[Sequence[Tensor], int], Tensor]
BASIC, BOTTLENECK = (3, 3), (1, 3, 1)
REGION_SIZE = 14  # cells that are pooled from conv4_x; conv5_1's stride reduces them to 7 (Appendix A)
TRUNK_STRIDE = 16


@dataclass(frozen=True)
class NetworkPlan:
    """A network's column of Table 1.

    Attributes:
        kernels: Kernel sides of a block's convolutions.
        blocks: Blocks of each stage.
        channels: Inner channels of each stage; a bottleneck has four times as many output channels.
        cifar: 3x3 stem without pooling (§4.2) instead of 7x7/2 and max pooling.
        residual: Whether there are shortcuts; the plain twin has none.
    """

    kernels: tuple[int, ...]
    blocks: tuple[int, ...]
    channels: tuple[int, ...]
    cifar: bool = False
    residual: bool = True


IMAGENET_BLOCKS = {
    18: (BASIC, (2, 2, 2, 2)),
    34: (BASIC, (3, 4, 6, 3)),
    50: (BOTTLENECK, (3, 4, 6, 3)),
    101: (BOTTLENECK, (3, 4, 23, 3)),
    152: (BOTTLENECK, (3, 8, 36, 3)),
}


def build_network(
    config: NetworkConfig, num_classes: int, generator: torch.Generator | None = None
) -> ResNet | VGG:
    """The network that `config` describes, freshly initialized.

    Args:
        config: Family, depth and options.
        num_classes: Outputs of the fully connected layer.
        generator: Source of the initial weights; the global generator if None.
    """
    if config.name.startswith("vgg"):
        return VGG(
            int(config.name[3:]), num_classes, pool=config.pool, width=config.width, generator=generator
        )
    return ResNet(
        plan_network(config.name, config.width),
        num_classes,
        shortcut=config.shortcut,
        zero_channels=config.zero_channels,
        stride_in=config.stride_in,
        pool=config.pool,
        eps=config.eps,
        generator=generator,
    )


def plan_network(name: str, width: float = 1.0) -> NetworkPlan:
    """The column of Table 1 (or the network of §4.2) for a name such as `resnet50`, `plain34`, `cifar_resnet110`."""
    family = name.rstrip("0123456789")
    depth = int(name[len(family) :])
    residual = family.endswith("resnet")
    if family.startswith("cifar"):
        channels = tuple(scale_channels(count, width) for count in (16, 32, 64))
        return NetworkPlan(BASIC, ((depth - 2) // 6,) * 3, channels, cifar=True, residual=residual)
    kernels, blocks = IMAGENET_BLOCKS[depth]
    return NetworkPlan(
        kernels,
        blocks,
        tuple(scale_channels(count, width) for count in (64, 128, 256, 512)),
        residual=residual,
    )


class ResNet(nn.Module):
    """A residual network or its plain twin; parameters have torchvision's names.

    Args:
        plan: Stages and blocks.
        num_classes: Outputs of `fc`.
        shortcut: Option A, B or C of §4.1.
        zero_channels: Where option A puts the zero channels.
        stride_in: Which convolution of a bottleneck has the stride.
        pool: The stem's max pool.
        eps: Of batch normalization.
        generator: Source of the initial weights.
    """

    def __init__(
        self,
        plan: NetworkPlan,
        num_classes: int,
        *,
        shortcut: Shortcut = "B",
        zero_channels: ZeroChannels = "after",
        stride_in: StrideIn = "1x1",
        pool: Pool = "torchvision",
        eps: float = 1e-5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        channels = plan.channels[0]
        if plan.cifar:
            self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels, eps)
        self.maxpool = _stem_pool(plan, pool)
        self.num_stages = len(plan.blocks)
        self.stage_channels: list[int] = []
        stride_at = 1 if plan.kernels == BOTTLENECK and stride_in == "3x3" else 0
        for number, (blocks, inner) in enumerate(zip(plan.blocks, plan.channels, strict=True), start=1):
            stage = nn.Sequential()
            out_channels = inner * (4 if plan.kernels == BOTTLENECK else 1)
            for index in range(blocks):
                strides = [1] * len(plan.kernels)
                strides[stride_at] = 2 if index == 0 and number > 1 else 1
                kind = _shortcut_kind(plan.residual, shortcut, channels != out_channels or max(strides) > 1)
                stage.append(
                    Block(channels, inner, out_channels, plan.kernels, strides, kind, zero_channels, eps)
                )
                channels = out_channels
            self.add_module(f"layer{number}", stage)
            self.stage_channels.append(channels)
        self.out_channels = channels
        self.fc = nn.Linear(channels, num_classes)
        initialize(self, generator)

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) to the last stage's maps (N, out_channels, h, w)."""
        return _run_stages(self, images, self.num_stages)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W), any sides, to logits (N, num_classes)."""
        return self.fc(self.features(images).mean(dim=(2, 3)))


class Block(nn.Module):
    """Convolutions, each with BN and ReLU, and the shortcut added before the last ReLU (Figures 2 and 5).

    Args:
        in_channels: Channels of the input.
        channels: Output channels of every convolution but the last.
        out_channels: Output channels of the last convolution.
        kernels: Kernel sides, (3, 3) or (1, 3, 1).
        strides: Strides of the convolutions, of which at most one is above 1.
        shortcut: none (plain), identity, zeros (option A) or projection.
        zero_channels: Where option A puts the zero channels.
        eps: Of batch normalization.
    """

    conv1: nn.Conv2d
    bn1: nn.Module

    def __init__(
        self,
        in_channels: int,
        channels: int,
        out_channels: int,
        kernels: Sequence[int],
        strides: Sequence[int],
        shortcut: Literal["none", "identity", "zeros", "projection"],
        zero_channels: ZeroChannels,
        eps: float,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * (len(kernels) - 1) + [out_channels]
        for index, (kernel, stride) in enumerate(zip(kernels, strides, strict=True)):
            conv = nn.Conv2d(widths[index], widths[index + 1], kernel, stride, kernel // 2, bias=False)
            self.add_module(f"conv{index + 1}", conv)
            self.add_module(f"bn{index + 1}", nn.BatchNorm2d(widths[index + 1], eps))
        self.depth, self.stride, self.shortcut = len(kernels), max(strides), shortcut
        added = out_channels - in_channels
        self.zeros = (added // 2, added - added // 2) if zero_channels == "both" else (0, added)
        if shortcut == "projection":
            projection = nn.Conv2d(in_channels, out_channels, 1, self.stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(out_channels, eps))

    def forward(self, maps: Tensor) -> Tensor:
        """(N, in_channels, h, w) to (N, out_channels, ceil(h / stride), ceil(w / stride))."""
        residual = self._residual(maps, first=1)
        if self.shortcut != "none":
            residual += self._shortcut(maps)
        return F.relu(residual, inplace=True)

    def convolve_before_pooling(self, maps: Sequence[Tensor], pool: LinearPooling) -> Tensor:
        """`forward(pool(maps, 1))` of a bottleneck with a projection, with the 1x1 convolutions run before pooling.

        Pooling is linear over positions and a 1x1 convolution is linear over channels, so that their order can be
        exchanged; the offset and ReLU come after both. Overlapping regions then share the work, and a strided
        convolution pools only the cells that it reads.
        """
        hidden = _convolve_before_pooling(self.conv1, self.bn1, maps, pool)
        residual = self._residual(F.relu(hidden, inplace=True), first=2)
        conv, norm = self._projection()
        residual += _convolve_before_pooling(conv, norm, maps, pool)
        return F.relu(residual, inplace=True)

    def _projection(self) -> tuple[nn.Conv2d, nn.Module]:
        conv, norm = self.downsample
        assert isinstance(conv, nn.Conv2d)
        return conv, norm

    def _residual(self, maps: Tensor, first: int) -> Tensor:
        """The convolutions from number `first` on, each with its norm, and the ReLUs between them."""
        for number in range(first, self.depth + 1):
            maps = convolve(getattr(self, f"conv{number}"), getattr(self, f"bn{number}"), maps)
            if number < self.depth:
                maps = F.relu(maps, inplace=True)
        return maps

    def _shortcut(self, maps: Tensor) -> Tensor:
        if self.shortcut == "projection":
            return convolve(*self._projection(), maps)
        if self.shortcut == "zeros":
            return F.pad(maps[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.zeros))
        return maps


def _convolve_before_pooling(
    conv: nn.Conv2d, norm: nn.Module, maps: Sequence[Tensor], pool: LinearPooling
) -> Tensor:
    """`norm(conv(pool(maps, 1)))` of a 1x1 convolution and a constant norm, with pooling after the convolution."""
    weight, offset = fold_norm(conv, norm)
    pooled = pool([F.conv2d(features, weight) for features in maps], conv.stride[0])
    if offset is None:
        return pooled
    # Under autocast the offset may be wider than the maps and would make a wide copy.
    return pooled.add_(offset.to(pooled.dtype)[:, None, None])


class CaffeMaxPool(nn.Module):
    """3x3 max pool of stride 2 without padding; windows at the border are cut instead of dropped (Caffe's rule)."""

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, h, w), values at least 0 (after ReLU), to (N, C, ceil((h - 1) / 2), ...), at least 1 a side."""
        height, width = maps.shape[-2:]
        if (
            min(height, width) < 2
        ):  # a side of 1 has no window; after ReLU padding with a zero changes no maximum
            maps = F.pad(maps, (0, max(0, 2 - width), 0, max(0, 2 - height)))
        return F.max_pool2d(maps, 3, 2, ceil_mode=True)


class Trunk(nn.Module):
    """conv1..conv4_x, which RPN and Fast R-CNN share (Appendix A). Its state dict has the whole network's keys."""

    def __init__(self, network: ResNet) -> None:
        super().__init__()
        self.conv1, self.bn1, self.maxpool = network.conv1, network.bn1, network.maxpool
        for number in (1, 2, 3):
            self.add_module(f"layer{number}", network.get_submodule(f"layer{number}"))
        self.out_channels = network.stage_channels[2]
        self.stride = TRUNK_STRIDE

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W), any sides, to (N, out_channels, h, w) with h about H / 16."""
        return _run_stages(self, images, 3)

    def stages(self) -> list[list[nn.Module]]:
        """The modules of conv1, conv2_x, conv3_x, conv4_x."""
        return [[self.conv1, self.bn1], *([self.get_submodule(f"layer{number}")] for number in (1, 2, 3))]


class Head(nn.Module):
    """conv5_x and global average pooling, run on each pooled region (Appendix A).

    Its state dict has the whole network's keys.
    """

    def __init__(self, network: ResNet) -> None:
        super().__init__()
        self.layer4 = network.get_submodule("layer4")
        self.out_channels = network.out_channels
        self.region_size = REGION_SIZE

    def forward(self, regions: Tensor) -> Tensor:
        """Pooled regions (R, C, 14, 14) to features (R, out_channels); R may be 0."""
        return self.layer4(regions).mean(dim=(2, 3))

    @property
    def begins_with_1x1(self) -> bool:
        """Whether conv5_1 is a bottleneck with a projection and constant norms, as needed to pool last."""
        block = cast(Block, self.layer4.get_submodule("0"))
        constant = not any(isinstance(module, nn.BatchNorm2d) for module in block.modules())
        return block.conv1.kernel_size == (1, 1) and block.shortcut == "projection" and constant

    def convolve_before_pooling(self, maps: Sequence[Tensor], pool: LinearPooling) -> Tensor:
        """The same as `forward(pool(maps, 1))`, but faster; see `Block.convolve_before_pooling`.

        Args:
            maps: For each image (1, C, h, w).
            pool: From maps of any number of channels and a stride to all images' regions
                (R, channels, 14 / stride, 14 / stride); linear, and each channel by itself (RoIAlign, not max pooling).
        """
        first, *others = cast("Iterator[Block]", self.layer4.children())
        regions = first.convolve_before_pooling(maps, pool)
        for block in others:
            regions = cast(Tensor, block(regions))
        return regions.mean(dim=(2, 3))


def split_network(network: ResNet | VGG) -> tuple[Trunk | VGGTrunk, Head | VGGHead]:
    """Split a network into trunk and head, which share its modules; the last `fc` is left out.

    Trunk: images (N, 3, H, W) to maps (N, trunk.out_channels, h, w), stride `trunk.stride`.
    Head: regions (R, C, s, s), s = `head.region_size`, to features (R, head.out_channels).

    Raises:
        ValueError: A CIFAR network, because it has no conv5_x.
    """
    if isinstance(network, VGG):
        return VGGTrunk(network), VGGHead(network)
    if network.num_stages != 4:
        raise ValueError("a CIFAR network has no conv5_x and cannot be split into trunk and head")
    return Trunk(network), Head(network)


def freeze_stages(trunk: Trunk | VGGTrunk, freeze_at: int) -> None:
    """Freeze the first `freeze_at` stages: 0 none, 1 conv1, 2 conv1 and conv2_x (as in the paper), ..."""
    for stage in trunk.stages()[:freeze_at]:
        for module in stage:
            module.requires_grad_(False)


def _stem_pool(plan: NetworkPlan, pool: Pool) -> nn.Module:
    if plan.cifar:
        return nn.Identity()
    return CaffeMaxPool() if pool == "caffe" else nn.MaxPool2d(3, 2, padding=1)


def _shortcut_kind(
    residual: bool, option: Shortcut, dimensions_change: bool
) -> Literal["none", "identity", "zeros", "projection"]:
    if not residual:
        return "none"
    if option == "C" or (option == "B" and dimensions_change):
        return "projection"
    return "zeros" if dimensions_change else "identity"


def _run_stages(network: ResNet | Trunk, images: Tensor, stages: int) -> Tensor:
    maps = network.maxpool(F.relu(convolve(network.conv1, network.bn1, images), inplace=True))
    for number in range(1, stages + 1):
        maps = network.get_submodule(f"layer{number}")(maps)
    return maps
