"""timm's ResNets and VGGs (pytorch-image-models): torchvision's names, with a recipe where there is one.

On timm's hub each file has a config.json beside it, with the network's name and the preprocessing. A training
checkpoint names its network as `arch`. A ResNet of timm without either is read as torchvision's: stride, pool and
preprocessing are the same. Other networks with the same tensor names (resnetaa50, resnetblur50) cannot be told apart
then.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detres.data.config import CropConfig
from detres.data.preprocessing import TORCHVISION, Preprocessing
from detres.errors import WeightsError
from detres.weights.layouts import torchvision
from detres.weights.layouts.common import ForeignFile, ParsedWeights, networks_of

log = logging.getLogger("detres")

HUB_NAMES = ("model.safetensors", "pytorch_model.bin")  # the files that a config.json beside them describes
DEFAULT_SIDE = 224
# Old names say where the weights came from (tv_resnet50, gluon_resnet50_v1b); the network is the same.
KNOWN = re.compile(r"(?:tv_|gluon_|ssl_|swsl_)?(resnet(?:18|34|50|101|152)|vgg(?:16|19))(?:_v1b)?(?:\..*)?")
VGG_LAYERS = {
    "pre_logits.fc1": "classifier.0",
    "pre_logits.fc2": "classifier.3",
    "head.fc": "classifier.6",
}


def fits(file: ForeignFile) -> bool:
    """Whether the file has timm's names of a VGG, or torchvision's names and a recipe of timm's."""
    return "pre_logits.fc1.weight" in file.tensors or (torchvision.fits(file) and _recipe(file) is not None)


def read(file: ForeignFile) -> ParsedWeights:
    """Translate a state_dict; a VGG without a recipe has torchvision's preprocessing.

    Raises:
        WeightsError: The recipe is malformed, or names a network that detres does not build.
    """
    where, recipe = file.source, _recipe(file)
    renamed = {_torchvision_name(name): tensor for name, tensor in file.tensors.items()}
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
                f"{where}: detres does not build timm's {recipe['architecture']}, though its tensor names may be the "
                "same; it builds resnet18, 34, 50, 101, 152, vgg16 and vgg19"
            )
        names = [known.group(1)]
        preprocessing, crop = _parse_recipe(recipe, where)
        _warn_of_differences(recipe.get("pretrained_cfg", recipe), where)
    networks = networks_of(names, torchvision.FORM, renamed)
    return ParsedWeights("timm's", renamed, networks, preprocessing, crop)


def _recipe(file: ForeignFile) -> Mapping[str, Any] | None:
    """The hub's config.json (`architecture`, `pretrained_cfg`), or the network that a training checkpoint names."""
    recipe = _hub_recipe(file.path) if file.path else None
    if recipe is None and "arch" in file.content and "state_dict" in file.content:
        return {"architecture": file.content["arch"]}
    return recipe


def _hub_recipe(path: Path) -> dict[str, Any] | None:
    """The hub's config.json beside a weights file; None where there is none of timm's.

    It describes only files with the hub's own names; for another checkpoint that lies there a warning is logged.

    Raises:
        WeightsError: The file is there and cannot be read.
    """
    beside = path.with_name("config.json")
    if not beside.is_file():
        return None
    if path.name not in HUB_NAMES:
        log.warning(
            "%s is not read for %s: it describes %s; if it describes these weights, give them that name",
            beside,
            path.name,
            " or ".join(HUB_NAMES),
        )
        return None
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise WeightsError(
            f"{beside}: not JSON ({error}); it should describe {path.name}: mend or remove it"
        ) from error
    is_timm = isinstance(content, dict) and "architecture" in content
    return content if is_timm else None


def _torchvision_name(name: str) -> str:
    for layer, new in VGG_LAYERS.items():
        if name.startswith(f"{layer}."):
            return new + name.removeprefix(layer)
    return name


def _parse_recipe(recipe: Mapping[str, Any], where: str) -> tuple[Preprocessing, CropConfig | None]:
    values = recipe.get("pretrained_cfg", recipe)
    try:
        preprocessing = Preprocessing(
            mean=tuple(values.get("mean", TORCHVISION.mean)), std=tuple(values.get("std", TORCHVISION.std))
        )
        if "input_size" not in values:
            return preprocessing, None
        side = int(values["input_size"][-1])
        test_side = int(side / float(values.get("crop_pct", 0.875)))
        train_sides = (round(side * 256 / 224), round(side * 480 / 224))  # §3.4's range for 224
        return preprocessing, CropConfig(size=side, train_sides=train_sides, test_side=test_side)
    except (TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise WeightsError(
            f"{where}: the config.json beside it has no usable pretrained_cfg ({error})"
        ) from error


def _warn_of_differences(values: Mapping[str, Any], where: str) -> None:
    """Log what timm would do with the images and detres does not do."""
    different = []
    if values.get("interpolation") not in (None, "bilinear"):
        different.append(f"interpolation {values['interpolation']} (images are resized bilinearly)")
    side = values["input_size"][-1] if "input_size" in values else DEFAULT_SIDE
    if side != DEFAULT_SIDE:
        different.append(
            f"input size {side} (kept by a conversion; training and detection have their own sizes)"
        )
    if "test_input_size" in values and values["test_input_size"][-1] != side:
        different.append(f"test size {values['test_input_size'][-1]} (images are tested at {side})")
    if values.get("crop_mode") not in (None, "center"):
        different.append(f"crop mode {values['crop_mode']} (the center of the resized image is taken)")
    if different:
        log.warning("%s: timm's recipe is followed except for %s", where, "; ".join(different))
