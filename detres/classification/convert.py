"""Converts weights: from any layout that `--init` reads to a weights file of ours, and back to torchvision's names.

The recipe (He et al. 2015, §3.3-3.4: preprocessing, stride, pool, eps) travels with the weights in both directions.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from detres.classification.config import ClassifierArchitecture
from detres.data.config import CropConfig
from detres.data.preprocessing import TORCHVISION
from detres.errors import UserError, WeightsError, listed
from detres.files import atomic_path
from detres.networks.config import NetworkConfig
from detres.networks.resnet import build_network
from detres.weights.checkpoint import Metadata, save_weights
from detres.weights.foreign import DETRES_LAYOUT, TORCHVISION_NETWORKS, Backbone, read_backbone
from detres.weights.layouts import tagged_safetensors
from detres.weights.layouts.torchvision import FORM

IMAGENET_CLASSES = 1000


def convert_to_detres(
    source: str | Path, out: str | Path, class_names: tuple[str, ...] | None = None
) -> Backbone:
    """Write foreign weights as a classifier's file of ours.

    Args:
        source: What `read_backbone` takes; a whole network.
        out: The `.safetensors` to write.
        class_names: Names of the outputs in their order; None: the layout's (CIFAR-10), or torchvision's names of
            ImageNet's classes where there are 1000 outputs.

    Returns:
        What was read.

    Raises:
        WeightsError: Not recognized, parts are missing, or another number of classes than `class_names`.
    """
    backbone = read_backbone(source)
    if backbone.layout == DETRES_LAYOUT:
        raise WeightsError(f"{source}: a file of detres already; --to torchvision converts it")
    if backbone.missing:
        raise WeightsError(
            f"{source}: lacks {listed(backbone.missing, 4)}; a weights file of detres is whole. To start training "
            "it can be used as it is: --init, with model.init_partial: true"
        )
    metadata = Metadata(
        task="classification",
        architecture=ClassifierArchitecture(
            network=NetworkConfig.model_validate(backbone.network), frozen_batch_norm=backbone.folded
        ).model_dump(mode="json"),
        class_names=_class_names(backbone, class_names),
        preprocessing=backbone.preprocessing,
        sizes=(backbone.crop or CropConfig()).model_dump(mode="json"),
        source=f"{Path(source).name}, {backbone.layout}",
    )
    save_weights(out, backbone.tensors, metadata)
    return backbone


def convert_to_torchvision(source: str | Path, out: str | Path) -> tuple[Backbone, list[str]]:
    """Write weights under torchvision's names: `.pth` as a state_dict, `.safetensors` with the recipe as metadata.

    Args:
        source: What `read_backbone` takes, whole or a part; a detector gives its backbone.
        out: The `.pth`, `.pt` or `.safetensors` to write.

    Returns:
        What was read, and how its recipe differs from torchvision's (empty for a `.pth`).

    Raises:
        WeightsError: torchvision has no such network, or the recipe is not torchvision's and the file cannot say so.
    """
    backbone = read_backbone(source)
    network = NetworkConfig.model_validate(backbone.network)
    if (
        network.name not in TORCHVISION_NETWORKS
        or network.width != 1
        or (network.name.startswith("resnet") and network.shortcut != "B")
    ):
        raise WeightsError(
            f"{source}: torchvision has no {network.name} of shortcut {network.shortcut} and width {network.width:g}; "
            f"it has {listed(TORCHVISION_NETWORKS)}"
        )
    foreign = _differences(network, backbone)
    tensors = _in_order(backbone.tensors, network)
    if Path(out).suffix == ".safetensors":
        entries = {"format": "pt", **tagged_safetensors.entries_of(network, backbone.preprocessing)}
        with atomic_path(out) as beside:
            save_file(tensors, beside, entries)
    elif Path(out).suffix in (".pth", ".pt"):
        if foreign:
            raise WeightsError(
                f"{out}: a .pth cannot say that these weights are used otherwise than torchvision's "
                f"({'; '.join(foreign)}); write a .safetensors, whose metadata say it"
            )
        with atomic_path(out) as beside:
            torch.save(tensors, beside)
    else:
        raise UserError(f"{out}: torchvision's weights are written as .pth or .safetensors")
    return backbone, foreign


def imagenet_names() -> tuple[str, ...]:
    """The names that torchvision gives ImageNet's 1000 classes, in the order of the outputs."""
    from torchvision.models import get_model_weights

    return tuple(get_model_weights("resnet18")["IMAGENET1K_V1"].meta["categories"])


def _class_names(backbone: Backbone, given: tuple[str, ...] | None) -> tuple[str, ...]:
    last = next(name for name in ("fc.weight", "classifier.6.weight") if name in backbone.tensors)
    outputs = len(backbone.tensors[last])
    names = given or backbone.class_names
    if names is None and outputs == IMAGENET_CLASSES:
        names = imagenet_names()
    if names is None:
        raise WeightsError(f"{backbone.source}: its {outputs} classes have no names; --classes gives them")
    if len(names) != outputs:
        raise WeightsError(f"{backbone.source}: has {outputs} classes, but {len(names)} names are given")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise WeightsError(f"{backbone.source}: class names given twice: {listed(repeated, 4)}")
    return names


def _differences(network: NetworkConfig, backbone: Backbone) -> list[str]:
    """How the network differs from torchvision's."""
    relevant = ("stride_in", "pool", "eps") if network.name.startswith("resnet") else ("pool",)
    if network.name in ("resnet18", "resnet34"):
        relevant = ("pool", "eps")  # basic blocks have one place for the stride
    found = [
        f"{key} {getattr(network, key)}, not {FORM[key]}"
        for key in relevant
        if getattr(network, key) != FORM[key]
    ]
    preprocessing = backbone.preprocessing
    if preprocessing != TORCHVISION:
        found.append(
            f"{preprocessing.channel_order} 0..{preprocessing.value_range} minus {listed(preprocessing.mean)} over "
            f"{listed(preprocessing.std)}"
        )
    if preprocessing.mean_image is not None:
        found.append("the mean of each pixel, of which the metadata keep the mean per channel")
    return found


def _in_order(tensors: dict[str, Tensor], network: NetworkConfig) -> dict[str, Tensor]:
    """The tensors in the order of torchvision's files, each with its own memory."""
    with torch.device("meta"):
        order = list(build_network(network, 1).state_dict())
    return {name: tensors[name].contiguous().clone() for name in order if name in tensors}
