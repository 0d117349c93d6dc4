"""VGG-16 and VGG-19, the paper's comparison, split into trunk (conv1_1..conv5_3) and head (fc6, fc7).

Simonyan and Zisserman 2015 ([41] of He et al. 2015); as a detector: Girshick 2015, Ren et al. 2015.

Glossary: N images, R regions, C channels, H and W the sides of an image, h and w those of a map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detres.networks.config import Pool, scale_channels
from detres.networks.initialization import initialize

STAGE_CHANNELS = (64, 128, 256, 512, 512)
STAGE_CONVOLUTIONS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
HIDDEN = 4096
DROPOUT = 0.5
REGION_SIZE = 7
TRUNK_STRIDE = 16


class VGG(nn.Module):
    """VGG without batch normalization; parameters have torchvision's names.

    fc6 and fc7 are followed by dropout, the one layer in the networks whose output depends on the mode. It draws from
    torch's global generator, which the training loop seeds for every step.

    Args:
        depth: 16 or 19.
        num_classes: Outputs of the last layer.
        pool: Caffe's max pools keep partial windows (ceil mode), torchvision's drop them.
        width: Factor on all channel counts.
        generator: Source of the initial weights.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int,
        *,
        pool: Pool = "torchvision",
        width: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential()
        channels = 3
        for convolutions, base in zip(STAGE_CONVOLUTIONS[depth], STAGE_CHANNELS, strict=True):
            for _ in range(convolutions):
                self.features.append(nn.Conv2d(channels, scale_channels(base, width), 3, padding=1))
                self.features.append(nn.ReLU(inplace=True))
                channels = scale_channels(base, width)
            self.features.append(nn.MaxPool2d(2, 2, ceil_mode=pool == "caffe"))
        self.avgpool = nn.AdaptiveAvgPool2d(REGION_SIZE)
        hidden = scale_channels(HIDDEN, width)
        self.classifier = nn.Sequential(
            nn.Linear(channels * REGION_SIZE**2, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(DROPOUT),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(DROPOUT),
            nn.Linear(hidden, num_classes),
        )
        self.out_channels, self.fc7_channels = channels, hidden
        initialize(self, generator)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W), sides at least 32, to logits (N, num_classes)."""
        return self.classifier(self.avgpool(self.features(images)).flatten(1))

    def dense(self, images: Tensor) -> Tensor:
        """Fully convolutional evaluation ([41], §3.2): fc6 runs as a 7x7 convolution, and the logits are averaged.

        Args:
            images: (N, 3, H, W), sides at least 224; at 224 the result is that of `forward`.

        Returns:
            (N, num_classes).
        """
        fc6, fc7, last = (layer for layer in self.classifier if isinstance(layer, nn.Linear))
        maps = self.features(images)  # (N, C, h, w)
        kernel = fc6.weight.view(len(fc6.weight), -1, REGION_SIZE, REGION_SIZE)
        maps = F.relu(F.conv2d(maps, kernel, fc6.bias))  # (N, hidden, h - 6, w - 6)
        maps = F.relu(F.conv2d(maps, fc7.weight[:, :, None, None], fc7.bias))
        return last(maps.mean(dim=(2, 3)))


class VGGTrunk(nn.Module):
    """conv1_1..conv5_3 with its ReLU, without the last pool: stride 16. Its state dict has the whole network's keys."""

    def __init__(self, network: VGG) -> None:
        super().__init__()
        self.features = nn.Sequential(*list(network.features)[:-1])
        self.out_channels = network.out_channels
        self.stride = TRUNK_STRIDE

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, out_channels, h, w); sides below the stride give one position.

        A side of one position is padded with a zero before pooling, so that it is kept as in Caffe. After ReLU the
        zero changes no maximum.
        """
        if min(images.shape[-2:]) >= TRUNK_STRIDE:
            return self.features(images)
        maps = images
        for module in self.features:
            if isinstance(module, nn.MaxPool2d):
                height, width = maps.shape[-2:]
                maps = F.pad(maps, (0, int(width == 1), 0, int(height == 1)))
            maps = module(maps)
        return maps

    def stages(self) -> list[list[nn.Module]]:
        """The modules of conv1_x, ..., conv5_x; a pool belongs to the stage that it ends."""
        stages: list[list[nn.Module]] = [[]]
        for module in self.features:
            stages[-1].append(module)
            if isinstance(module, nn.MaxPool2d):
                stages.append([])
        return stages


class VGGHead(nn.Module):
    """fc6 and fc7, each with ReLU and dropout, run on each pooled region; the state dict has the network's keys."""

    def __init__(self, network: VGG) -> None:
        super().__init__()
        self.classifier = nn.Sequential(*list(network.classifier)[:-1])
        self.out_channels = network.fc7_channels
        self.region_size = REGION_SIZE

    def forward(self, regions: Tensor) -> Tensor:
        """Pooled regions (R, C, 7, 7) to features (R, out_channels); R may be 0."""
        return self.classifier(regions.flatten(1))
