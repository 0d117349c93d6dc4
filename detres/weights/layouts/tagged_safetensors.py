"""Torchvision's tensor names with the recipe in the metadata of a safetensors file, one key each, all text.

For weights, whole or a part, whose recipe cannot be seen from their names: MSRA's brought to torchvision's names.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from detres.data.preprocessing import Preprocessing
from detres.errors import WeightsError
from detres.networks.config import NetworkConfig
from detres.weights.layouts.common import ParsedWeights, networks_of

POOLS = {
    "caffe": "kernel 3, stride 2, padding 0, ceil_mode true",
    "torchvision": "kernel 3, stride 2, padding 1, ceil_mode false",
}


def fits(entries: Mapping[str, str]) -> bool:
    """Whether a safetensors file's metadata name an architecture."""
    return "architecture" in entries


def read(tensors: Mapping[str, Tensor], entries: Mapping[str, str], where: str) -> ParsedWeights:
    """Tensors and the recipe in `entries`.

    Raises:
        WeightsError: A key of the recipe is missing or not of its form.
    """
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
            f"{where}: metadata without a usable recipe ({error}); needed are architecture, stride_in_1x1, maxpool, "
            "bn_eps, channel_order, value_range, mean, std"
        ) from error
    networks = networks_of((entries["architecture"],), form, tensors)
    return ParsedWeights("described in its metadata", dict(tensors), networks, preprocessing)


def entries_of(network: NetworkConfig, preprocessing: Preprocessing) -> dict[str, str]:
    """The metadata that `read` takes; the preprocessing is said per channel."""
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
