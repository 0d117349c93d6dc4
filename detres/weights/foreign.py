"""Reads the weights that a training starts from, in any layout, with their recipe (`--init`).

MSRA's weights with torchvision's preprocessing, stride or pool still load, but the network loses many points. So the
recipe comes with the weights (He et al. 2015, §3.3-3.4), and a file that is not recognized is refused.

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
from detres.weights.checkpoint import METADATA_KEY, Metadata, is_checkpoint, parse_metadata, read_safetensors
from detres.weights.layouts import caffe, caffe2, cifar, detectron2, tagged_safetensors, timm, torchvision
from detres.weights.layouts.common import ForeignFile, Layout, ParsedWeights, conv_of, is_norm
from detres.weights.loading import COUNTER, check_tensors
from detres.weights.pickles import is_npz, is_pickle, read_arrays, read_pickle
from detres.weights.plausibility import find_contradiction

TORCHVISION_PREFIX = torchvision.PREFIX
TORCHVISION_NETWORKS = torchvision.NETWORKS
DETRES_LAYOUT = "detres's"
# Under which a training checkpoint has the tensors; of several in one file the first is taken, averages last.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "blobs", "state_dict_ema", "ema")
PREFIXES = ("module.", "model.")  # of DataParallel and Lightning
CLASSIFICATION_LAYERS = ("fc.", "classifier.6.")
# Where a detector has the parts of the classification network: conv1..conv4_x and conv5_x (VGG: fc6, fc7).
DETECTOR_PARTS = ("trunk.", "roi_head.body.")
# The first that fits is read: names of torchvision's are the least specific and come last.
LAYOUTS = (
    Layout(
        "recipe in the metadata of a .safetensors",
        "key architecture",
        tagged_safetensors.fits,
        tagged_safetensors.read,
    ),
    Layout("Caffe", "conv1 with res2a_branch2a, or conv1_1 with conv5_3", caffe.fits, caffe.read),
    Layout("Caffe2", "conv1_w with res2_0_branch2a_w", caffe2.fits, caffe2.read),
    Layout("detectron2", "stem.conv1.weight", detectron2.fits, detectron2.read),
    Layout("published CIFAR ResNets", "linear.weight with layer3, no layer4", cifar.fits, cifar.read),
    Layout("timm", "pre_logits.fc1.weight (VGG), or torchvision's with config.json", timm.fits, timm.read),
    Layout(
        "torchvision",
        "conv1.weight (ResNet) or features.0.weight (VGG)",
        torchvision.fits,
        torchvision.read,
    ),
)


@dataclass(frozen=True)
class Backbone:
    """Weights of a classification network, whole or partial, with their recipe.

    Attributes:
        tensors: torchvision's names -> tensors on the CPU.
        network: The `NetworkConfig` fields that the file tells (name, width, stride_in, pool, eps...).
        preprocessing: How pixels become this network's input.
        source: The user's name for the file, for messages and metadata.
        missing: Names of the network's tensors that the file does not have (the classification layer included).
        dropped: Names of tensors that are left out: BN vectors whose convolution is missing.
        class_names: The classes of the classification layer; None: the file does not name them.
        layout: Whose file it is, for messages.
        crop: The crops that it was trained and tested on; None: not known.
        folded: The file has no BN statistics: its norms are constant scales and offsets.
        checkpoint: All tensors and the metadata of the file where it is one of detres.
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
        """The tensors without the classification layer: those that a detector has too."""
        return {
            name: tensor
            for name, tensor in self.tensors.items()
            if not name.startswith(CLASSIFICATION_LAYERS)
        }


def read_backbone(source: str | Path) -> Backbone:
    """Read the weights of a classification network, or those that a detector has of one; the file is read once.

    Args:
        source: A `.safetensors` of detres (any task); a file in one of `LAYOUTS` (`.pth`, `.th`, `.pkl`, `.npz`,
            `.safetensors`); or `torchvision:NAME`, which torchvision finds in its cache or downloads. A relative path
            is looked up in the current folder, then in `DETRES_DATA`, then in `datasets/`.

    Raises:
        WeightsError: Not found, damaged, not recognized (with the reason), or the download failed.
    """
    text = str(source)
    if text.startswith(TORCHVISION_PREFIX):
        name, tensors = torchvision.download(text)
        backbone = _check_network(torchvision.read(ForeignFile(text, tensors)), text)
        if backbone.network["name"] != name:
            raise WeightsError(
                f"{text}: torchvision's cached file holds a {backbone.network['name']}: delete it"
            )
        return backbone
    path = find_weights(source)
    metadata: dict[str, str] = {}
    if _starts_as_safetensors(path):
        content, metadata = read_safetensors(path)
        if is_checkpoint(metadata, path):
            return _checkpoint_backbone(content, parse_metadata(metadata[METADATA_KEY], content, path), text)
    else:
        content = read_arrays(path) if is_npz(path) else read_pickle(path)
    file = ForeignFile(text, _state_dict(content), content, metadata, path)
    check_tensors(file.tensors, text, translated=False)
    for layout in LAYOUTS:
        if layout.fits(file):
            return _check_network(layout.read(file), text)
    if not file.tensors:
        raise WeightsError(f"{text}: holds no tensors by name (its keys: {listed(content, 5)})")
    marks = "; ".join(f"{layout.name}: {layout.marks}" for layout in LAYOUTS)
    raise WeightsError(
        f"{text}: not recognized: its {len(file.tensors)} tensors ({listed(file.tensors, 3)}) have no known layout's "
        f"names ({marks})"
    )


def find_weights(source: str | Path) -> Path:
    """The path of a weights file: `source` itself, else in `DETRES_DATA`, else in `datasets/`.

    Raises:
        WeightsError: None of these is a file; the message lists them.
    """
    path = Path(source).expanduser()
    tried = [path]
    if not path.is_absolute():
        data_root = os.environ.get("DETRES_DATA")
        tried += [Path(data_root) / path] if data_root else []
        tried.append(Path("datasets") / path)
    for candidate in tried:
        if os.path.isfile(candidate):
            return candidate
    raise WeightsError(
        f"{source}: no such weights file (tried {listed(tried)}); {TORCHVISION_PREFIX}NAME takes torchvision's, of "
        f"{listed(TORCHVISION_NETWORKS)}"
    )


def _checkpoint_backbone(tensors: dict[str, Tensor], metadata: Metadata, source: str) -> Backbone:
    """The backbone in a weights file of detres: a classifier whole, of a detector the parts that a classifier has."""
    network = _network_fields(metadata.architecture)
    if "name" not in network:
        raise WeightsError(
            f"{source}: the metadata's architecture names no network; the file is damaged or edited"
        )
    parts, classes = tensors, metadata.class_names
    if metadata.task != "classification":
        prefixes = [
            (name, prefix) for name in tensors for prefix in DETECTOR_PARTS if name.startswith(prefix)
        ]
        parts, classes = {name.removeprefix(prefix): tensors[name] for name, prefix in prefixes}, None
    parsed = ParsedWeights(DETRES_LAYOUT, parts, (network,), metadata.preprocessing, class_names=classes)
    return replace(_check_network(parsed, source), checkpoint=(tensors, metadata))


def _network_fields(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `NetworkConfig` in a task's architecture, where they may be in a section of their own."""
    model = architecture.get("model", architecture)
    inner = model.get("network", model) if isinstance(model, Mapping) else architecture
    fields = inner if isinstance(inner, Mapping) else architecture
    return {key: fields[key] for key in NetworkConfig.model_fields if key in fields}


def _check_network(parsed: ParsedWeights, source: str) -> Backbone:
    """Compare the tensors with the networks that they may be of."""
    check_tensors(parsed.tensors, source)
    weights = [name for name in parsed.tensors if is_norm(name) and name.endswith(".weight")]
    bare = [name for name in weights if f"{name.removesuffix('weight')}running_mean" not in parsed.tensors]
    if bare:
        raise WeightsError(
            f"{source}: norms without running_mean ({listed(bare, 3)}): they are group normalization, or statistics "
            "were left out; batch normalization with its statistics is needed"
        )
    dropped = _orphans(parsed.tensors)
    kept = {name: tensor for name, tensor in parsed.tensors.items() if name not in dropped}
    network, missing = _network_of(kept, parsed, source)
    known = parsed.layout == DETRES_LAYOUT or parsed.folded
    problem = None if known else find_contradiction(kept, parsed.preprocessing)
    if problem:
        raise WeightsError(
            f"{source}: read as {parsed.layout}, but {problem}; weights with another recipe need it in the metadata of "
            "a .safetensors (docs/weights.md)"
        )
    return Backbone(
        tensors=kept,
        network=network,
        preprocessing=parsed.preprocessing,
        source=source,
        missing=tuple(missing),
        dropped=tuple(dropped),
        class_names=parsed.class_names,
        layout=parsed.layout,
        crop=parsed.crop,
        folded=parsed.folded,
    )


def _network_of(
    tensors: Mapping[str, Tensor], parsed: ParsedWeights, source: str
) -> tuple[dict[str, Any], list[str]]:
    """The first network that the tensors fit, and the names of its tensors that they lack."""
    fits: list[tuple[int, list[str], dict[str, Any]]] = []
    refusals: list[tuple[int, str, str]] = []
    for network in parsed.networks:
        missing, differences = _compare(tensors, network)
        if differences:
            refusals.append((len(differences) + len(missing), network["name"], listed(differences, 3)))
        else:
            fits.append((len(missing), missing, network))
    if fits:
        # A part of ResNet-18 is a part of ResNet-34 too: the network with the fewest missing tensors is taken.
        _, missing, network = min(fits, key=lambda fit: fit[0])
        return network, missing
    _, name, reason = min(refusals)
    if len(refusals) == 1:
        raise WeightsError(f"{source}: is not the {name} that it is said to be: {reason}")
    names = listed(network["name"] for network in parsed.networks)
    raise WeightsError(
        f"{source}: not recognized: its names are {parsed.layout}, but it is none of {names}; as {name}: {reason}"
    )


def _orphans(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of BN vectors whose convolution is missing: a re-initialized convolution has other statistics."""
    names = []
    for name in tensors:
        norm = re.fullmatch(r"(.*\.(?:bn\d|downsample\.1))\.\w+", name)
        if norm and f"{conv_of(norm.group(1))}.weight" not in tensors:
            names.append(name)
    return names


def _compare(tensors: Mapping[str, Tensor], network: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The network's names that `tensors` lack; and differences: names that it does not have, shapes that differ."""
    try:
        config = NetworkConfig.model_validate(network)
    except ValueError as error:
        raise WeightsError(
            f"detres does not build the file's network {network} ({str(error).splitlines()[-1].strip()})"
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


def _state_dict(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, without the keys and prefixes that wrappers put around a network's own."""
    for _ in range(len(WRAPPERS)):  # a pickle may be endless
        content = next((content[key] for key in WRAPPERS if _holds_tensors(content.get(key))), content)
    tensors = {
        name.replace("_orig_mod.", ""): value  # torch.compile's, wherever it stands
        for name, value in content.items()
        if isinstance(value, Tensor) and name != "n_averaged"  # the count of swa_utils.AveragedModel
    }
    while tensors and (
        prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in tensors)), None)
    ):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _holds_tensors(value: object) -> bool:
    """Whether a value is a dictionary of tensors, or of wrappers."""
    if not isinstance(value, Mapping):
        return False
    return any(isinstance(inner, Tensor) or key in WRAPPERS for key, inner in value.items())


def _starts_as_safetensors(path: Path) -> bool:
    """Whether the file is a safetensors file by its start (8 bytes of length, then JSON), else by its name."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{" or (path.suffix == ".safetensors" and not is_pickle(path))
