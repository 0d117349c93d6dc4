"""detectron2's own names for a classification network: stem.conv1, stem.conv1.norm, res2.0.conv1, res2.0.shortcut.

MSRA's networks (see `caffe2`) unless the file says that it was torchvision's: tools/convert-torchvision-to-d2.py there
writes `__author__: torchvision`, and then form and preprocessing are torchvision's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from detres.data.preprocessing import TORCHVISION
from detres.errors import WeightsError, listed
from detres.weights.layouts import torchvision
from detres.weights.layouts.caffe2 import DETECTRON
from detres.weights.layouts.common import (
    MSRA_FORM,
    MSRA_NETWORKS,
    ParsedWeights,
    constant_norms,
    networks_of,
    norm_of,
)

LOOKED_FOR = "stem.conv1.weight: detectron2"
LAYER = re.compile(r"(?:stem\.(conv1)|res(\d)\.(\d+)\.(conv\d|shortcut))(\.norm)?\.(\w+)")
LAST = re.compile(r"(?:stem\.)?(?:fc|linear|fc1000)\.(weight|bias)")


def fits(names: Collection[str]) -> bool:
    """Whether these are detectron2's names of a backbone by itself (a detector's begin with `backbone.`)."""
    return "stem.conv1.weight" in names


def read(tensors: Mapping[str, Tensor], author: str, where: str) -> ParsedWeights:
    """A state_dict of one.

    Args:
        tensors: By detectron2's names.
        author: The file's `__author__`, or an empty text.
        where: The file, for messages.

    Raises:
        WeightsError: Names that are none of such a network's.
    """
    translated = {name: _torchvision_name(name) for name in tensors}
    unknown = [name for name, ours in translated.items() if ours is None]
    if unknown:
        raise WeightsError(f"{where}: detectron2's names, but also {listed(unknown, 4)}")
    renamed = {ours: tensors[name] for name, ours in translated.items() if ours is not None}
    if author == "torchvision":
        names = [name for name in torchvision.NETWORKS if name.startswith("resnet")]
        networks = networks_of(names, torchvision.FORM, renamed)
        return ParsedWeights("torchvision's (detectron2's names)", renamed, networks, TORCHVISION)
    whole, folded = constant_norms(renamed, MSRA_FORM["eps"])
    networks = networks_of(MSRA_NETWORKS, MSRA_FORM, whole)
    return ParsedWeights("detectron2's MSRA weights", whole, networks, DETECTRON, folded=folded)


def _torchvision_name(name: str) -> str | None:
    if last := LAST.fullmatch(name):
        return f"fc.{last.group(1)}"
    found = LAYER.fullmatch(name)
    if found is None:
        return None
    stem, stage, block, layer, norm, part = found.groups()
    inside = "downsample.0" if layer == "shortcut" else layer
    conv = stem or f"layer{int(stage) - 1}.{block}.{inside}"
    return f"{norm_of(conv) if norm else conv}.{part}"
