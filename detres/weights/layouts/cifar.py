"""The published CIFAR-10 ResNets (akamaster/pytorch_resnet_cifar10): §4.2's networks, `linear` at their end.

RGB, 0..1, mean and std of ImageNet; option A with half of the zero channels in front and half behind.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from detres.data.config import CropConfig
from detres.data.preprocessing import TORCHVISION
from detres.weights.layouts.common import ParsedWeights

LOOKED_FOR = "linear.weight and layer3 without layer4: published CIFAR ResNets"
# In the order of the labels of CIFAR-10 (its batches.meta).
CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
CROP = CropConfig(size=32, train_sides=None, test_side=None, pad=4)


def fits(names: Collection[str]) -> bool:
    """Whether these are names of a network with three stages and a last layer `linear`."""
    stages = {name.split(".")[0] for name in names}
    ends = "conv1.weight" in names and "linear.weight" in names
    return ends and "layer3" in stages and "layer4" not in stages


def read(tensors: Mapping[str, Tensor]) -> ParsedWeights:
    """A state_dict of one; depth 6n + 2 from the blocks, projections where the file has them (option B)."""
    renamed = {
        re.sub(r"^linear\.", "fc.", name).replace(".shortcut.", ".downsample."): tensor
        for name, tensor in tensors.items()
    }
    blocks = len({name.split(".")[1] for name in renamed if name.startswith("layer1.")})
    network = {
        "name": f"cifar_resnet{6 * blocks + 2}",
        "shortcut": "B" if any(".downsample." in name for name in renamed) else "A",
        "zero_channels": "both",
        "width": len(renamed["conv1.weight"]) / 16,
        "eps": 1e-5,
    }
    last = renamed.get("fc.weight")
    class_names = CLASS_NAMES if last is not None and len(last) == len(CLASS_NAMES) else None
    return ParsedWeights("a published CIFAR ResNet", renamed, (network,), TORCHVISION, CROP, class_names)
