"""timm's ResNets and VGGs (pytorch-image-models): torchvision's names and form, with a recipe file where there is one.

On its hub each file has a config.json beside it, with the network's name and the preprocessing; a training checkpoint
says its network as `arch`. Without either a ResNet of timm is like one of torchvision, which it equals in stride, pool
and preprocessing; only networks that hide behind the same names (resnetaa50, resnetblur50) cannot be told then.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from detres.data.config import CropConfig
from detres.data.preprocessing import TORCHVISION, Preprocessing
from detres.errors import WeightsError
from detres.weights.layouts import torchvision
from detres.weights.layouts.common import ParsedWeights, networks_of

log = logging.getLogger("detres")

HUB_NAMES = ("model.safetensors", "pytorch_model.bin")  # the files that a config.json beside them is of
USUAL_SIDE = 224
LOOKED_FOR = "pre_logits.fc1.weight (VGG): timm"
# Old names say where the weights came from (tv_resnet50, gluon_resnet50_v1b); the network is the same.
KNOWN = re.compile(r"(?:tv_|gluon_|ssl_|swsl_)?(resnet(?:18|34|50|101|152)|vgg(?:16|19))(?:_v1b)?(?:\..*)?")
VGG_LAYERS = {
    "pre_logits.fc1": "classifier.0",
    "pre_logits.fc2": "classifier.3",
    "head.fc": "classifier.6",
}


def fits(names: Collection[str]) -> bool:
    """Whether these are names that only timm uses: those of its VGGs' last layers."""
    return "pre_logits.fc1.weight" in names


def recipe_beside(path: Path) -> dict[str, Any] | None:
    """What the hub's config.json beside a weights file says; None where there is none of timm's.

    It is of the files by the hub's own names alone: a checkpoint by another name may lie there by chance; that is told.

    Raises:
        WeightsError: The file is there and cannot be read.
    """
    beside = path.with_name("config.json")
    if not beside.is_file():
        return None
    if path.name not in HUB_NAMES:
        log.warning(
            "%s is not read for %s: it says what a %s beside it is; give the weights that name where they are meant",
            beside,
            path.name,
            " or ".join(HUB_NAMES),
        )
        return None
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise WeightsError(
            f"{beside}: not JSON ({error}); it should say what {path.name} is, or not lie there"
        ) from error
    is_timm = isinstance(content, dict) and "architecture" in content
    return content if is_timm else None


def read(tensors: Mapping[str, Tensor], recipe: Mapping[str, Any] | None, where: str) -> ParsedWeights:
    """A state_dict of timm's.

    Args:
        tensors: By timm's names.
        recipe: The hub's config.json (`architecture`, `pretrained_cfg`); None: timm's VGG without one.
        where: The file, for messages.

    Raises:
        WeightsError: The recipe names a network that is not built here, or is no recipe.
    """
    renamed = {_torchvision_name(name): tensor for name, tensor in tensors.items()}
    for name in ("classifier.0.weight", "classifier.3.weight"):
        if name in renamed:
            renamed[name] = renamed[name].flatten(1)  # timm's fc6 and fc7 are convolutions
    kind = "vgg" if "features.0.weight" in renamed else "resnet"
    names = [name for name in torchvision.NETWORKS if name.startswith(kind)]
    preprocessing, crop = TORCHVISION, None
    if recipe is not None:
        known = KNOWN.fullmatch(str(recipe["architecture"]))
        if known is None:
            raise WeightsError(
                f"{where}: timm's {recipe['architecture']} is not built here, though its names may look so; "
                "resnet18, 34, 50, 101, 152, vgg16 and vgg19 are"
            )
        names = [known.group(1)]
        preprocessing, crop = _recipe_of(recipe, where)
        _warn_of_differences(recipe.get("pretrained_cfg", recipe), where)
    networks = networks_of(names, torchvision.FORM, renamed)
    return ParsedWeights("timm's", renamed, networks, preprocessing, crop)


def _torchvision_name(name: str) -> str:
    for ours, theirs in VGG_LAYERS.items():
        if name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    return name


def _recipe_of(recipe: Mapping[str, Any], where: str) -> tuple[Preprocessing, CropConfig | None]:
    said = recipe.get("pretrained_cfg", recipe)
    try:
        preprocessing = Preprocessing(
            mean=tuple(said.get("mean", TORCHVISION.mean)), std=tuple(said.get("std", TORCHVISION.std))
        )
        if "input_size" not in said:
            return preprocessing, None
        side = int(said["input_size"][-1])
        test_side = int(side / float(said.get("crop_pct", 0.875)))
        train_sides = (round(side * 256 / 224), round(side * 480 / 224))  # §3.4's range for 224
        return preprocessing, CropConfig(size=side, train_sides=train_sides, test_side=test_side)
    except (TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise WeightsError(
            f"{where}: the config.json beside it has no usable pretrained_cfg ({error})"
        ) from error


def _warn_of_differences(said: Mapping[str, Any], where: str) -> None:
    """Name what timm would do with the pictures and is not done here."""
    different = []
    if said.get("interpolation") not in (None, "bilinear"):
        different.append(f"interpolation {said['interpolation']} (pictures are resized bilinearly)")
    side = said["input_size"][-1] if "input_size" in said else USUAL_SIDE
    if side != USUAL_SIDE:
        different.append(f"input size {side} (kept when converted; training and detection take their own)")
    if "test_input_size" in said and said["test_input_size"][-1] != side:
        different.append(f"test size {said['test_input_size'][-1]} (tested on crops of {side})")
    if said.get("crop_mode") not in (None, "center"):
        different.append(f"crop mode {said['crop_mode']} (the center of the resized picture is taken)")
    if different:
        log.warning("%s: timm's recipe is followed but for %s", where, "; ".join(different))
