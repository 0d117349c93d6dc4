"""A backbone to start from, whoever trained it, with the recipe that it needs: where a detector's `--init` ends.

Torchvision's or MSRA's weights under the other's preprocessing, stride or pool still load and quietly cost many points;
so these come with the weights (He et al. 2015, §3.3-3.4), and a file that is not recognised is refused.

Tensor names are torchvision's: conv1, bn1, layer1.0.conv1 ... layer4 (conv5_x), fc; VGG: features.N, classifier.N.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detres.data.preprocessing import TORCHVISION, Preprocessing
from detres.errors import WeightsError, listed, nearest
from detres.networks.config import NetworkConfig
from detres.networks.resnet import build_network
from detres.weights.loading import COUNTER
from detres.weights.ours import Metadata, is_ours, read_safetensors, read_weights
from detres.weights.pickles import read_pickle

TORCHVISION_PREFIX = "torchvision:"
TORCHVISION_NETWORKS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vgg16", "vgg19")
# What torchvision's own networks are: not to be seen from a state_dict's shapes.
TORCHVISION_FORM = {"stride_in": "3x3", "pool": "torchvision", "eps": 1e-5}
CLASSIFICATION_LAYERS = ("fc.", "classifier.6.")
# Where a detector keeps the parts of the classification network: conv1..conv4_x and conv5_x (VGG: fc6, fc7).
DETECTOR_PARTS = ("trunk.", "region_head.body.")


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
    """

    tensors: dict[str, Tensor]
    network: dict[str, Any]
    preprocessing: Preprocessing
    source: str
    missing: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None

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
        source: Our `.safetensors` (classification or detection); torchvision's state_dict (`.pth`, `.safetensors`),
            recognised by its shapes; a partial `.safetensors` whose metadata give the recipe; or `torchvision:NAME`,
            which lets torchvision find it in its cache or download it. A relative path is looked up from here,
            then in `DETRES_DATA`, then in `datasets/`.

    Raises:
        WeightsError: Not found, damaged, not recognised (with the reason), or the download failed.
    """
    if str(source).startswith(TORCHVISION_PREFIX):
        return _from_torchvision(str(source))
    path = find_weights(source)
    if _starts_as_safetensors(path):
        tensors, entries = read_safetensors(path)
        if is_ours(entries):
            tensors, metadata = read_weights(path)
            return _from_ours(tensors, metadata, str(source))
        if "architecture" in entries:
            return _from_described(tensors, entries, str(source))
        return _from_state_dict(tensors, str(source))
    return _from_state_dict(_state_dict(read_pickle(path), path), str(source))


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
        f"{source}: no such weights file (tried {listed(tried)}); or 'torchvision:resnet18|34|50|101|152'"
    )


def _from_torchvision(source: str) -> Backbone:
    name = source.removeprefix(TORCHVISION_PREFIX)
    if name not in TORCHVISION_NETWORKS:
        raise WeightsError(
            f"{source}: torchvision weights are taken of {listed(TORCHVISION_NETWORKS)}"
            f"{nearest(name, TORCHVISION_NETWORKS)}"
        )
    from torchvision.models import get_model_weights

    weights = get_model_weights(name)["IMAGENET1K_V1"]
    try:
        tensors = weights.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        raise WeightsError(
            f"{source}: torchvision could not download {weights.url} ({reason}); fetch it where there is internet and "
            "give its path"
        ) from error
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise WeightsError(
            f"{source}: {cached} is damaged or not what torchvision published; delete it"
        ) from error
    found = _from_state_dict(dict(tensors), source)
    if found.network["name"] != name:
        raise WeightsError(f"{source}: torchvision's cached file holds a {found.network['name']}; delete it")
    return found


def _from_ours(tensors: dict[str, Tensor], metadata: Metadata, source: str) -> Backbone:
    """A network trained here: a classifier whole, of a detector the parts that a classifier has too."""
    network = _network_fields(metadata.architecture)
    if "name" not in network:
        raise WeightsError(
            f"{source}: the metadata's architecture names no network; the file is damaged or edited"
        )
    if metadata.task != "classification":
        parts = [(name, prefix) for name in tensors for prefix in DETECTOR_PARTS if name.startswith(prefix)]
        tensors = {name.removeprefix(prefix): tensors[name] for name, prefix in parts}
    classes = metadata.class_names if metadata.task == "classification" else None
    return _checked(tensors, network, metadata.preprocessing, source, classes)


def _network_fields(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """The network's keys of a task's model configuration, where they stand by themselves or among the others."""
    inner = architecture.get("network", architecture)
    fields = inner if isinstance(inner, Mapping) else architecture
    return {key: fields[key] for key in NetworkConfig.model_fields if key in fields}


def _from_described(tensors: dict[str, Tensor], entries: Mapping[str, str], source: str) -> Backbone:
    """A safetensors file whose metadata give the recipe as text, one key each."""
    try:
        mean, std = (tuple(float(number) for number in entries[key].split(",")) for key in ("mean", "std"))
        network = {
            "name": entries["architecture"],
            "width": _width(tensors),
            "stride_in": {"true": "1x1", "false": "3x3"}[entries["stride_in_1x1"]],
            "pool": "caffe" if "ceil_mode true" in entries["maxpool"] else "torchvision",
            "eps": float(entries["bn_eps"]),
        }
        recipe = {
            "channel_order": entries["channel_order"],
            "value_range": int(entries["value_range"].removeprefix("0..")),
            "mean": mean,
            "std": std,
        }
        preprocessing = Preprocessing.model_validate(recipe)
    except (KeyError, ValueError) as error:
        raise WeightsError(
            f"{source}: metadata without a usable recipe ({error}); needed are architecture, stride_in_1x1, maxpool, "
            "bn_eps, channel_order, value_range, mean, std"
        ) from error
    return _checked(tensors, network, preprocessing, source)


def _from_state_dict(tensors: dict[str, Tensor], source: str) -> Backbone:
    """Torchvision's network that has these names and shapes; its form and preprocessing are torchvision's."""
    if not any(name in tensors for name in ("conv1.weight", "features.0.weight")):
        raise WeightsError(
            f"{source}: not recognised: neither conv1.weight (ResNet) nor features.0.weight (VGG) among its "
            f"{len(tensors)} tensors ({listed(tensors, 3)})"
        )
    kind = "resnet" if "conv1.weight" in tensors else "vgg"
    fits: list[tuple[int, dict[str, Any]]] = []
    refusals: list[tuple[int, str]] = []
    for name in TORCHVISION_NETWORKS:
        if not name.startswith(kind):
            continue
        network = {"name": name, "width": _width(tensors), **TORCHVISION_FORM}
        missing, differences = _compare(tensors, network)
        if differences:
            refusals.append((len(differences) + len(missing), f"as {name}: {listed(differences, 3)}"))
        else:
            fits.append((len(missing), network))
    if not fits:
        reason = min(refusals)[1]
        raise WeightsError(
            f"{source}: not recognised as one of torchvision's {listed(TORCHVISION_NETWORKS)}; {reason}"
        )
    # A part of ResNet-18 is a part of ResNet-34 too: the network with the fewest missing is meant.
    network = min(fits, key=lambda fit: fit[0])[1]
    return _checked(tensors, network, TORCHVISION, source)


def _checked(
    tensors: dict[str, Tensor],
    network: dict[str, Any],
    preprocessing: Preprocessing,
    source: str,
    class_names: tuple[str, ...] | None = None,
) -> Backbone:
    """The backbone, its tensors compared with the network that the file says it is."""
    dropped = _orphans(tensors)
    kept = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    missing, differences = _compare(kept, network)
    if differences:
        raise WeightsError(f"{source}: says {network['name']} but is not: {listed(differences, 4)}")
    return Backbone(kept, network, preprocessing, source, tuple(missing), tuple(dropped), class_names)


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


def _width(tensors: Mapping[str, Tensor]) -> float:
    """Channels of the first convolution against the 64 of Table 1."""
    first = tensors.get("conv1.weight", tensors.get("features.0.weight"))
    return len(first) / 64 if first is not None else 1.0


def _state_dict(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint: itself or under its `state_dict`/`model` key, without DataParallel's prefix."""
    for key in ("state_dict", "model"):
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
