"""A backbone to start from, whoever trained it, with the recipe that it needs: where a detector's `--init` ends.

Torchvision's or MSRA's weights under the other's preprocessing, stride or pool still load and quietly cost many points;
so these come with the weights (He et al. 2015, §3.3-3.4), and a file that is not recognized is refused.

Tensor names are torchvision's: conv1, bn1, layer1.0.conv1 ... layer4 (conv5_x), fc; VGG: features.N, classifier.N.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detres.data.config import CropConfig
from detres.data.preprocessing import Preprocessing
from detres.errors import WeightsError, listed
from detres.networks.config import NetworkConfig
from detres.networks.resnet import build_network
from detres.weights.checkpoint import METADATA_KEY, Metadata, is_ours, parse_metadata, read_safetensors
from detres.weights.layouts import caffe, caffe2, cifar, detectron2, tagged_safetensors, timm, torchvision
from detres.weights.layouts.common import ParsedWeights, is_norm
from detres.weights.loading import COUNTER
from detres.weights.pickles import is_npz, read_arrays, read_pickle
from detres.weights.plausibility import contradiction

TORCHVISION_PREFIX = torchvision.PREFIX
TORCHVISION_NETWORKS = torchvision.NETWORKS
OURS = "detres's"
CLASSIFICATION_LAYERS = ("fc.", "classifier.6.")
# Where a detector keeps the parts of the classification network: conv1..conv4_x and conv5_x (VGG: fc6, fc7).
DETECTOR_PARTS = ("trunk.", "roi_head.body.")


@dataclass(frozen=True)
class Backbone:
    """Weights of a classification network, whole or in part, and how to use them.

    Attributes:
        tensors: torchvision's names -> tensors on the CPU.
        network: The `NetworkConfig` fields that the file settles (name, width, stride_in, pool, eps...).
        preprocessing: How pixels become this network's input.
        source: Where it was read, for messages and metadata.
        missing: Names of the network's tensors that the file does not have (the classification layer included).
        dropped: Names in the file that are of no use: BN vectors whose convolution is missing.
        class_names: The classes of the classification layer, where the file names them.
        layout: Whose file it is, for messages.
        crop: The crops it was trained and tested on, where the file or its layout says.
        folded: The file has no BN statistics: its norms are constant scales and offsets.
        checkpoint: Where the file is a weights file of ours, all its tensors and its metadata.
    """

    tensors: dict[str, Tensor]
    network: dict[str, Any]
    preprocessing: Preprocessing
    source: str
    missing: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None
    layout: str = ""
    crop: CropConfig | None = None
    folded: bool = False
    checkpoint: tuple[dict[str, Tensor], Metadata] | None = None

    def features(self) -> dict[str, Tensor]:
        """The tensors without the classification layer: what a detector takes over."""
        return {
            name: tensor
            for name, tensor in self.tensors.items()
            if not name.startswith(CLASSIFICATION_LAYERS)
        }


def read_backbone(source: str | Path) -> Backbone:
    """Read a backbone.

    Args:
        source: Our `.safetensors` (classification or detection); a file in one of the layouts in `weights/layouts/`
            (`.pth`, `.th`, `.pkl`, `.npz`, `.safetensors`), recognized by its names and shapes; a partial
            `.safetensors` whose metadata give the recipe; or `torchvision:NAME`, which lets torchvision find it in its
            cache or download it. A relative path is looked up from here, then in `DETRES_DATA`, then in `datasets/`.

    Raises:
        WeightsError: Not found, damaged, not recognized (with the reason), or the download failed.
    """
    if str(source).startswith(TORCHVISION_PREFIX):
        name, tensors = torchvision.download(str(source))
        found = _checked(torchvision.read(tensors), str(source))
        if found.network["name"] != name:
            raise WeightsError(
                f"{source}: torchvision's cached file holds a {found.network['name']}; delete it"
            )
        return found
    path = find_weights(source)
    if not _starts_as_safetensors(path):
        return _recognized(read_arrays(path) if is_npz(path) else read_pickle(path), path, str(source))
    tensors, entries = read_safetensors(path)
    if is_ours(entries):
        return _from_ours(tensors, parse_metadata(entries[METADATA_KEY], path), str(source))
    if tagged_safetensors.fits(entries):
        return _checked(tagged_safetensors.read(tensors, entries, str(source)), str(source))
    return _recognized(tensors, path, str(source))


def find_weights(source: str | Path) -> Path:
    """The weights file meant by `source`: as given, else in `DETRES_DATA`, else in `datasets/`.

    Raises:
        WeightsError: None of them is a file; all that was tried is listed.
    """
    path = Path(source).expanduser()
    tried = [path]
    if not path.is_absolute():
        data_root = os.environ.get("DETRES_DATA")
        tried += [Path(data_root) / path] if data_root else []
        tried.append(Path("datasets") / path)
    for candidate in tried:
        if candidate.is_file():
            return candidate
    raise WeightsError(
        f"{source}: no such weights file (tried {listed(tried)}); or {TORCHVISION_PREFIX}NAME, of"
        f" {listed(TORCHVISION_NETWORKS)}"
    )


def _from_ours(tensors: dict[str, Tensor], metadata: Metadata, source: str) -> Backbone:
    """A network trained here: a classifier whole, of a detector the parts that a classifier has too."""
    network = _network_fields(metadata.architecture)
    if "name" not in network:
        raise WeightsError(
            f"{source}: the metadata's architecture names no network; the file is damaged or edited"
        )
    kept = tensors
    if metadata.task != "classification":
        parts = [(name, prefix) for name in tensors for prefix in DETECTOR_PARTS if name.startswith(prefix)]
        kept = {name.removeprefix(prefix): tensors[name] for name, prefix in parts}
    classes = metadata.class_names if metadata.task == "classification" else None
    parsed = ParsedWeights(OURS, kept, (network,), metadata.preprocessing, class_names=classes)
    return replace(_checked(parsed, source), checkpoint=(tensors, metadata))


def _network_fields(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """The network's keys of a task's model configuration, where they stand by themselves or among the others."""
    model = architecture.get("model", architecture)
    inner = model.get("network", model) if isinstance(model, Mapping) else architecture
    fields = inner if isinstance(inner, Mapping) else architecture
    return {key: fields[key] for key in NetworkConfig.model_fields if key in fields}


def _recognized(content: Mapping[str, Any], path: Path, source: str) -> Backbone:
    """The layout that the names tell, translated and compared with the network.

    A wrapped state_dict is unwrapped first; Caffe's arrays may be lists, so they are looked at before tensors are
    picked.
    """
    if caffe.fits(content):
        return _checked(caffe.read(content, source), source)
    tensors = _state_dict(content, path)
    if caffe2.fits(tensors):
        return _checked(caffe2.read(tensors, source), source)
    if detectron2.fits(tensors):
        return _checked(detectron2.read(tensors, str(content.get("__author__", "")), source), source)
    if cifar.fits(tensors):
        return _checked(cifar.read(tensors), source)
    recipe = timm.recipe_beside(path)
    if recipe is None and "arch" in content and "state_dict" in content:
        recipe = {"architecture": content["arch"]}  # a training checkpoint
    if timm.fits(tensors) or (recipe is not None and torchvision.fits(tensors)):
        return _checked(timm.read(tensors, recipe, source), source)
    if torchvision.fits(tensors):
        return _checked(torchvision.read(tensors), source)
    looked_for = "; ".join(
        layout.LOOKED_FOR for layout in (torchvision, timm, cifar, detectron2, caffe2, caffe)
    )
    raise WeightsError(
        f"{source}: not recognized: among its {len(tensors)} tensors ({listed(tensors, 3)}) there is neither "
        f"{looked_for}"
    )


def _checked(reading: ParsedWeights, source: str) -> Backbone:
    """The backbone, its tensors compared with the networks that it may be."""
    broken = [name for name, tensor in reading.tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise WeightsError(f"{source}: not finite: {listed(broken, 4)}; the file is damaged or diverged")
    weights = [name for name in reading.tensors if is_norm(name) and name.endswith(".weight")]
    bare = [name for name in weights if f"{name.removesuffix('weight')}running_mean" not in reading.tensors]
    if bare:
        raise WeightsError(
            f"{source}: norms without running_mean ({listed(bare, 3)}): group normalization, or weights cut out of a "
            "network; batch normalization with its statistics is needed"
        )
    dropped = _orphans(reading.tensors)
    kept = {name: tensor for name, tensor in reading.tensors.items() if name not in dropped}
    network, missing = _network_of(kept, reading, source)
    against = None if reading.layout == OURS or reading.folded else contradiction(kept, reading.preprocessing)
    if against:
        raise WeightsError(
            f"{source}: taken as {reading.layout}, but {against}: another's weights under these names? Their recipe "
            "can be said in the metadata of a .safetensors (docs/weights.md)"
        )
    return Backbone(
        tensors=kept,
        network=network,
        preprocessing=reading.preprocessing,
        source=source,
        missing=tuple(missing),
        dropped=tuple(dropped),
        class_names=reading.class_names,
        layout=reading.layout,
        crop=reading.crop,
        folded=reading.folded,
    )


def _network_of(
    tensors: Mapping[str, Tensor], reading: ParsedWeights, source: str
) -> tuple[dict[str, Any], list[str]]:
    """The network that fits of those that the reading allows, and what the tensors lack of it."""
    fits: list[tuple[int, list[str], dict[str, Any]]] = []
    refusals: list[tuple[int, str, str]] = []
    for network in reading.networks:
        missing, differences = _compare(tensors, network)
        if differences:
            refusals.append((len(differences) + len(missing), network["name"], listed(differences, 3)))
        else:
            fits.append((len(missing), missing, network))
    if fits:
        # A part of ResNet-18 is a part of ResNet-34 too: the network with the fewest missing is meant.
        _, missing, network = min(fits, key=lambda fit: fit[0])
        return network, missing
    _, name, reason = min(refusals)
    if len(refusals) == 1:
        raise WeightsError(f"{source}: says {name} but is not: {reason}")
    names = listed(network["name"] for network in reading.networks)
    raise WeightsError(
        f"{source}: not recognized as one of {names}, though its names are {reading.layout}; as {name}: {reason}"
    )


def _orphans(tensors: Mapping[str, Tensor]) -> list[str]:
    """BN vectors whose convolution is missing: statistics of another layer than the fresh one."""
    names = []
    for name in tensors:
        norm = re.fullmatch(r"(.*\.)(?:bn(\d)|downsample\.1)\.\w+", name)
        if norm:
            layer = f"conv{norm.group(2)}" if norm.group(2) else "downsample.0"
            if f"{norm.group(1)}{layer}.weight" not in tensors:
                names.append(name)
    return names


def _compare(tensors: Mapping[str, Tensor], network: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Names that `tensors` lack of the described network; and what they have beside it or in other shapes."""
    try:
        config = NetworkConfig.model_validate(network)
    except ValueError as error:
        raise WeightsError(
            f"the file's network is not known here: {network} ({str(error).splitlines()[-1].strip()})"
        ) from error
    with torch.device("meta"):
        expected = build_network(config, _num_classes(tensors)).state_dict()
    differences = []
    for name, wanted in expected.items():
        if name in tensors and tensors[name].shape != wanted.shape and not name.endswith(COUNTER):
            differences.append(f"{name} is {tuple(tensors[name].shape)}, not {tuple(wanted.shape)}")
    differences += [
        f"unexpected {name}" for name in tensors if name not in expected and not name.endswith(COUNTER)
    ]
    missing = [name for name in expected if name not in tensors and not name.endswith(COUNTER)]
    return missing, differences


def _num_classes(tensors: Mapping[str, Tensor]) -> int:
    for name in ("fc.weight", "classifier.6.weight"):
        if name in tensors:
            return len(tensors[name])
    return 1000


def _state_dict(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint: itself or under a usual key, without DataParallel's prefix."""
    for key in ("state_dict", "model", "blobs"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors by name (its keys: {listed(content, 5)})")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _starts_as_safetensors(path: Path) -> bool:
    """Eight bytes of length, then JSON; a file that only calls itself so is let through to its own error."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{" or path.suffix == ".safetensors"
