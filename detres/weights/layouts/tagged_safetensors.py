"""A `.safetensors` with torchvision's tensor names and the recipe in its metadata, a key of text for each value.

For weights, whole or partial, whose names do not tell the recipe, such as MSRA's under torchvision's names.
"""

from __future__ import annotations

from detres.data.preprocessing import Preprocessing
from detres.errors import WeightsError
from detres.networks.config import NetworkConfig
from detres.weights.layouts.common import ForeignFile, ParsedWeights, networks_of

POOLS = {
    "caffe": "kernel 3, stride 2, padding 0, ceil_mode true",
    "torchvision": "kernel 3, stride 2, padding 1, ceil_mode false",
}


def fits(file: ForeignFile) -> bool:
    """Whether the metadata name an architecture."""
    return "architecture" in file.metadata


def read(file: ForeignFile) -> ParsedWeights:
    """The tensors, and the recipe of the metadata.

    Raises:
        WeightsError: A key of the recipe is missing or malformed.
    """
    entries = file.metadata
    try:
        mean, std = (tuple(float(number) for number in entries[key].split(",")) for key in ("mean", "std"))
        form = {
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
            f"{file.source}: the metadata hold no usable recipe ({error}); architecture, stride_in_1x1, maxpool, "
            "bn_eps, channel_order, value_range, mean and std are needed"
        ) from error
    networks = networks_of((entries["architecture"],), form, file.tensors)
    return ParsedWeights("as its metadata say", dict(file.tensors), networks, preprocessing)


def entries_of(network: NetworkConfig, preprocessing: Preprocessing) -> dict[str, str]:
    """The metadata that `read` takes; the mean is per channel."""
    return {
        "architecture": network.name,
        "stride_in_1x1": "true" if network.stride_in == "1x1" else "false",
        "maxpool": POOLS[network.pool],
        "bn_eps": repr(network.eps),
        "channel_order": preprocessing.channel_order,
        "value_range": f"0..{preprocessing.value_range}",
        "mean": ",".join(repr(number) for number in preprocessing.mean),
        "std": ",".join(repr(number) for number in preprocessing.std),
    }
