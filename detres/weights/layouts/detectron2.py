"""detectron2's own names for a classification network: stem.conv1, stem.conv1.norm, res2.0.conv1, res2.0.shortcut.

The weights are MSRA's (see `caffe2`), unless detectron2's tools/convert-torchvision-to-d2.py wrote them. It writes
`__author__: torchvision`; stride, pool, eps and preprocessing are torchvision's then.
"""

from __future__ import annotations

import re

from detres.data.preprocessing import TORCHVISION
from detres.errors import WeightsError, listed
from detres.weights.layouts import torchvision
from detres.weights.layouts.caffe2 import DETECTRON
from detres.weights.layouts.common import (
    MSRA_FORM,
    MSRA_NETWORKS,
    ForeignFile,
    ParsedWeights,
    constant_norms,
    networks_of,
    norm_of,
)

LAYER = re.compile(r"(?:stem\.(conv1)|res(\d)\.(\d+)\.(conv\d|shortcut))(\.norm)?\.(\w+)")
LAST = re.compile(r"(?:stem\.)?(?:fc|linear|fc1000)\.(weight|bias)")


def fits(file: ForeignFile) -> bool:
    """Whether the file has detectron2's names of a backbone (a detector's names begin with `backbone.`)."""
    return "stem.conv1.weight" in file.tensors


def read(file: ForeignFile) -> ParsedWeights:
    """Translate a state_dict.

    Raises:
        WeightsError: A name that such a network does not have.
    """
    new_names = {name: _torchvision_name(name) for name in file.tensors}
    unknown = [name for name, new in new_names.items() if new is None]
    if unknown:
        raise WeightsError(f"{file.source}: has detectron2's names, but also {listed(unknown, 4)}")
    renamed = {new: file.tensors[name] for name, new in new_names.items() if new is not None}
    if file.content.get("__author__") == "torchvision":
        names = [name for name in torchvision.NETWORKS if name.startswith("resnet")]
        networks = networks_of(names, torchvision.FORM, renamed)
        return ParsedWeights("torchvision's (detectron2's names)", renamed, networks, TORCHVISION)
    whole, folded = constant_norms(renamed, MSRA_FORM["eps"])
    networks = networks_of(MSRA_NETWORKS, MSRA_FORM, whole)
    return ParsedWeights("detectron2's MSRA weights", whole, networks, DETECTRON, folded=folded)


def _torchvision_name(name: str) -> str | None:
    if last := LAST.fullmatch(name):
        return f"fc.{last.group(1)}"
    match = LAYER.fullmatch(name)
    if match is None:
        return None
    stem, stage, block, layer, norm, part = match.groups()
    inside = "downsample.0" if layer == "shortcut" else layer
    conv = stem or f"layer{int(stage) - 1}.{block}.{inside}"
    return f"{norm_of(conv) if norm else conv}.{part}"
