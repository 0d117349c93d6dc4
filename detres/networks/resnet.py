"""All residual networks and their plain twins, built from one block; their cut into trunk and head.

He et al. 2015, §3.3, Table 1, Figure 5 (bottleneck), §4.1 (options A, B, C), §4.2 (CIFAR-10); Appendix A for
the cut.

Glossary: N images, R regions, C channels, H and W the sides of an image, h and w those of a map. conv1,
layer1, ..., layer4 (torchvision's names) are the paper's conv1, conv2_x, ..., conv5_x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detres.networks.config import NetworkConfig, Pool, Shortcut, StrideIn, ZeroChannels, scaled
from detres.networks.initialization import initialize
from detres.networks.norm import convolve, weight_and_offset
from detres.networks.vgg import VGG, VGGHead, VGGTrunk

LinearPooling = Callable[[Sequence[Tensor], int], Tensor]
BASIC, BOTTLENECK = (3, 3), (1, 3, 1)
REGION_SIZE = 14  # cells pooled from conv4_x: conv5_1's stride makes 7 of them (Appendix A)
TRUNK_STRIDE = 16


@dataclass(frozen=True)
class Plan:
    """What Table 1 says of a network.

    Attributes:
        kernels: Kernel sides of a block's convolutions.
        blocks: Blocks of each stage.
        channels: Inner channels of each stage; a bottleneck has four times as many outside.
        cifar: 3x3 stem without pooling (§4.2) instead of 7x7/2 and max pooling.
        residual: Shortcuts, or none (the plain twin).
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
        generator: Where the initial weights come from; the global generator where None.
    """
    if config.name.startswith("vgg"):
        return VGG(
            int(config.name[3:]), num_classes, pool=config.pool, width=config.width, generator=generator
        )
    return ResNet(
        plan_of(config.name, config.width),
        num_classes,
        shortcut=config.shortcut,
        zero_channels=config.zero_channels,
        stride_in=config.stride_in,
        pool=config.pool,
        eps=config.eps,
        generator=generator,
    )


def plan_of(name: str, width: float = 1.0) -> Plan:
    """Table 1's column (or §4.2's network) for a name such as `resnet50`, `plain34`, `cifar_resnet110`."""
    family = name.rstrip("0123456789")
    depth = int(name[len(family) :])
    residual = family.endswith("resnet")
    if family.startswith("cifar"):
        channels = tuple(scaled(count, width) for count in (16, 32, 64))
        return Plan(BASIC, ((depth - 2) // 6,) * 3, channels, cifar=True, residual=residual)
    kernels, blocks = IMAGENET_BLOCKS[depth]
    return Plan(
        kernels, blocks, tuple(scaled(count, width) for count in (64, 128, 256, 512)), residual=residual
    )


class ResNet(nn.Module):
    """A residual network or its plain twin; parameters have torchvision's names.

    Args:
        plan: Stages and blocks.
        num_classes: Outputs of `fc`.
        shortcut: Option A, B or C of §4.1.
        zero_channels: Option A: where the zero channels go.
        stride_in: Which convolution of a bottleneck has the stride.
        pool: The stem's max pool.
        eps: Of batch normalization.
        generator: Source of the initial weights.
    """

    def __init__(
        self,
        plan: Plan,
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
                stride = 2 if index == 0 and number > 1 else 1
                kind = _shortcut_kind(plan.residual, shortcut, channels != out_channels or stride > 1)
                stage.append(
                    Block(
                        channels,
                        inner,
                        out_channels,
                        plan.kernels,
                        stride,
                        stride_at,
                        kind,
                        zero_channels,
                        eps,
                    )
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
        in_channels: Of what comes in.
        channels: Of every convolution but the last.
        out_channels: Of the last convolution.
        kernels: Kernel sides, (3, 3) or (1, 3, 1).
        stride: Of the whole block.
        stride_at: Index of the convolution that has it.
        shortcut: none (plain), identity, zeros (option A) or projection.
        zero_channels: Where option A's zeros go.
        eps: Of batch normalization.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        out_channels: int,
        kernels: Sequence[int],
        stride: int,
        stride_at: int,
        shortcut: Literal["none", "identity", "zeros", "projection"],
        zero_channels: ZeroChannels,
        eps: float,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * (len(kernels) - 1) + [out_channels]
        for index, kernel in enumerate(kernels):
            step = stride if index == stride_at else 1
            conv = nn.Conv2d(widths[index], widths[index + 1], kernel, step, padding=kernel // 2, bias=False)
            self.add_module(f"conv{index + 1}", conv)
            self.add_module(f"bn{index + 1}", nn.BatchNorm2d(widths[index + 1], eps))
        self.depth, self.stride, self.shortcut = len(kernels), stride, shortcut
        added = out_channels - in_channels
        self.zeros = (added // 2, added - added // 2) if zero_channels == "both" else (0, added)
        if shortcut == "projection":
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(out_channels, eps))

    def forward(self, maps: Tensor) -> Tensor:
        """(N, in_channels, h, w) to (N, out_channels, ceil(h / stride), ceil(w / stride))."""
        residual = self._residual(maps, first=1)
        if self.shortcut != "none":
            residual += self._shortcut(maps)
        return F.relu(residual, inplace=True)

    def convolve_before_pooling(self, maps: Sequence[Tensor], pool: LinearPooling) -> Tensor:
        """`forward(pool(maps, 1))` of a bottleneck with a projection, its 1x1 convolutions run before pooling.

        Pooling sums positions and a 1x1 convolution sums channels, so the two may change places; what follows in the
        block (offset, ReLU) comes after both. Overlapping regions share the work, and a strided convolution pools only
        the cells that it reads.
        """
        hidden = _pooled_convolution(self.conv1, self.bn1, maps, pool)  # type: ignore[arg-type]
        residual = self._residual(F.relu(hidden, inplace=True), first=2)
        residual += _pooled_convolution(self.downsample[0], self.downsample[1], maps, pool)  # type: ignore[arg-type]
        return F.relu(residual, inplace=True)

    def _residual(self, maps: Tensor, first: int) -> Tensor:
        """Convolutions from number `first` on, each with its norm, and the ReLUs between them."""
        for number in range(first, self.depth + 1):
            maps = convolve(getattr(self, f"conv{number}"), getattr(self, f"bn{number}"), maps)
            if number < self.depth:
                maps = F.relu(maps, inplace=True)
        return maps

    def _shortcut(self, maps: Tensor) -> Tensor:
        if self.shortcut == "projection":
            return convolve(self.downsample[0], self.downsample[1], maps)  # type: ignore[arg-type]
        if self.shortcut == "zeros":
            return F.pad(maps[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.zeros))
        return maps


def _pooled_convolution(
    conv: nn.Conv2d, norm: nn.Module, maps: Sequence[Tensor], pool: LinearPooling
) -> Tensor:
    """`norm(conv(pool(maps, 1)))` of a 1x1 convolution and a constant norm, pooled last."""
    weight, offset = weight_and_offset(conv, norm)
    pooled = pool([F.conv2d(features, weight) for features in maps], conv.stride[0])
    if offset is None:
        return pooled
    return pooled.add_(
        offset.to(pooled.dtype)[:, None, None]
    )  # autocast: a wider offset would make a wide copy


class CaffeMaxPool(nn.Module):
    """3x3 max pool of stride 2 without padding; windows that stick out are cut, not left out (Caffe's rule)."""

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, h, w), values at least 0 (after ReLU), to (N, C, ceil((h - 1) / 2), ...), at least 1 a side."""
        height, width = maps.shape[-2:]
        if min(height, width) < 2:  # a side of 1 would leave no window: a zero beside it changes no maximum
            maps = F.pad(maps, (0, max(0, 2 - width), 0, max(0, 2 - height)))
        return F.max_pool2d(maps, 3, 2, ceil_mode=True)


class Trunk(nn.Module):
    """conv1..conv4_x: what RPN and Fast R-CNN share (Appendix A). Its keys are the whole network's."""

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
    """conv5_x and global average pooling, run on each pooled region (Appendix A). Its keys are the whole network's."""

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
        """Whether conv5_1 is a bottleneck with a projection and constant norms, as `convolve_before_pooling` needs."""
        block = self.layer4.get_submodule("0")
        constant = not any(isinstance(module, nn.BatchNorm2d) for module in block.modules())
        return block.conv1.kernel_size == (1, 1) and block.shortcut == "projection" and constant  # type: ignore[union-attr]

    def convolve_before_pooling(self, maps: Sequence[Tensor], pool: LinearPooling) -> Tensor:
        """`forward(pool(maps, 1))`, faster: see `Block.convolve_before_pooling`.

        Args:
            maps: For each image (1, C, h, w).
            pool: Maps of any number of channels and a step to all images' regions (R, channels, 14 / step, 14 / step),
                linear and each channel by itself (RoIAlign, not max pooling).
        """
        first, *others = self.layer4.children()
        regions = first.convolve_before_pooling(maps, pool)  # type: ignore[operator]
        for block in others:
            regions = block(regions)
        return regions.mean(dim=(2, 3))


def split(network: ResNet | VGG) -> tuple[Trunk | VGGTrunk, Head | VGGHead]:
    """Cut a whole network into trunk and head, which go on using its modules (the last `fc` is left behind).

    Trunk: images (N, 3, H, W) to maps (N, trunk.out_channels, h, w), stride `trunk.stride`.
    Head: regions (R, C, s, s), s = `head.region_size`, to features (R, head.out_channels).

    Raises:
        ValueError: A CIFAR network, which has no conv5_x.
    """
    if isinstance(network, VGG):
        return VGGTrunk(network), VGGHead(network)
    if network.num_stages != 4:
        raise ValueError("a CIFAR network has no conv5_x and cannot be cut into trunk and head")
    return Trunk(network), Head(network)


def freeze_stages(trunk: Trunk | VGGTrunk, freeze_at: int) -> None:
    """Take gradients off the first `freeze_at` stages: 0 none, 1 conv1, 2 conv1 and conv2_x (the paper's), ..."""
    for stage in trunk.stages()[:freeze_at]:
        for module in stage:
            module.requires_grad_(False)


def _stem_pool(plan: Plan, pool: Pool) -> nn.Module:
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
