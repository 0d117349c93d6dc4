"""torchvision's networks, whose names all layouts are translated to.

RGB, 0..1, mean and std of ImageNet; a bottleneck's stride in its 3x3; max pool with padding 1 (torchvision's
models/resnet.py, models/vgg.py).
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from detres.data.preprocessing import TORCHVISION, Preprocessing
from detres.errors import WeightsError, listed, nearest
from detres.weights.layouts.common import ForeignFile, ParsedWeights, networks_of

PREFIX = "torchvision:"
NETWORKS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vgg16", "vgg19")
# The options of torchvision's networks, which the shapes in a state_dict do not tell.
FORM = {"stride_in": "3x3", "pool": "torchvision", "eps": 1e-5}
# Of torchvision's VGG16_Weights.IMAGENET1K_FEATURES: Caffe's weights in RGB; the classifier is filled with NaN.
VGG_FEATURES = Preprocessing(mean=(0.48235, 0.45882, 0.40784), std=(1 / 255, 1 / 255, 1 / 255))


def fits(file: ForeignFile) -> bool:
    """Whether the file has names of torchvision's ResNets or VGGs, whole or in part."""
    return "conv1.weight" in file.tensors or "features.0.weight" in file.tensors


def read(file: ForeignFile) -> ParsedWeights:
    """The state_dict, with the recipe of torchvision's own networks."""
    tensors = file.tensors
    kind = "resnet" if "conv1.weight" in tensors else "vgg"
    networks = networks_of((name for name in NETWORKS if name.startswith(kind)), FORM, tensors)
    last = tensors.get("classifier.6.weight")
    if last is not None and last.isnan().all():
        features = {name: tensor for name, tensor in tensors.items() if name.startswith("features.")}
        return ParsedWeights("torchvision's (features only)", features, networks, VGG_FEATURES)
    return ParsedWeights("torchvision's", dict(tensors), networks, TORCHVISION)


def download(source: str) -> tuple[str, dict[str, Tensor]]:
    """The network's name and tensors of `torchvision:NAME`, from torchvision's cache or its server.

    Raises:
        WeightsError: No such network here, the download failed, or the cached file is damaged.
    """
    name = source.removeprefix(PREFIX)
    if name not in NETWORKS:
        raise WeightsError(
            f"{source}: no such weights{nearest(name, NETWORKS)}; torchvision has {listed(NETWORKS)}"
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
            f"{source}: torchvision could not download {weights.url} ({reason}); download it elsewhere and "
            "give its path"
        ) from error
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise WeightsError(
            f"{source}: {cached} is damaged or not what torchvision published: delete it"
        ) from error
    return name, dict(tensors)
