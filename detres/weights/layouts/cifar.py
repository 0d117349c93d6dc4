"""The published CIFAR-10 ResNets (akamaster/pytorch_resnet_cifar10): §4.2's networks, `linear` at their end.

RGB, 0..1, mean and std of ImageNet; option A with half of the zero channels in front and half behind.
"""

from __future__ import annotations

import re

from detres.data.config import CropConfig
from detres.data.preprocessing import TORCHVISION
from detres.weights.layouts.common import ForeignFile, ParsedWeights

# In the order of CIFAR-10's labels (batches.meta).
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CROP = CropConfig(size=32, train_sides=None, test_side=None, pad=4)


def fits(file: ForeignFile) -> bool:
    """Whether the file has a network of three stages with a last layer `linear`."""
    modules = {name.split(".")[0] for name in file.tensors}
    return {"conv1", "layer3", "linear"} <= modules and "layer4" not in modules


def read(file: ForeignFile) -> ParsedWeights:
    """Translate a state_dict: the depth is 6n + 2 for n blocks a stage, projections mean option B."""
    renamed = {
        re.sub(r"^linear\.", "fc.", name).replace(".shortcut.", ".downsample."): tensor
        for name, tensor in file.tensors.items()
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
    class_names = CIFAR10_CLASSES if last is not None and len(last) == len(CIFAR10_CLASSES) else None
    return ParsedWeights("a published CIFAR ResNet", renamed, (network,), TORCHVISION, CROP, class_names)
