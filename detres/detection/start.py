"""Fine-tuning: a detector that goes on from another detector, perhaps of other classes (He et al. 2015, App. B:
COCO, then VOC).

Trunk and conv5_x come with any backbone (`build.load_backbone`); here the RPN is taken over as well, and of the class
layers the rows of the classes that both have. K classes here, D channels of a region's feature.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from detres.detection.build import prepare_for_training
from detres.detection.config import Architecture, DetectionConfig
from detres.detection.faster_rcnn import FasterRCNN
from detres.errors import ConfigError, WeightsError, listed, nearest
from detres.weights.checkpoint import Metadata, architecture_of, is_ours, read_safetensors, read_weights
from detres.weights.foreign import TORCHVISION_PREFIX, find_weights
from detres.weights.loading import load_tensors
from detres.weights.starting import start_network

log = logging.getLogger("detres")


def start_detector(config: DetectionConfig, class_names: Sequence[str]) -> tuple[FasterRCNN, Architecture]:
    """The detector that a training begins with: fresh layers, initial weights, frozen stages, what `init` has besides.

    Args:
        config: The whole configuration.
        class_names: Its K names.

    Raises:
        ConfigError, WeightsError: As `build.prepare_for_training` and `load_pretrained_detector`.
    """
    model = config.model
    network, architecture = prepare_for_training(
        model, config.architecture, len(class_names), config.train.seed
    )
    load_pretrained_detector(network, architecture, class_names, model.init, model.init_classes)
    return network, architecture


def check_start(config: DetectionConfig, class_names: Sequence[str]) -> None:
    """Raise what `start_detector` would of a detector as `init`, before a run folder is touched; log nothing.

    Args:
        config: The whole configuration.
        class_names: Its K names.
    """
    model = config.model
    network, _, _ = start_network(model.network, model.init)
    _find_detector(config.architecture(network), class_names, model.init, model.init_classes)


def load_pretrained_detector(
    network: FasterRCNN,
    architecture: Architecture,
    class_names: Sequence[str],
    init: str | None,
    init_classes: Mapping[str, str],
) -> None:
    """Copy what the detector `init` has beyond a backbone; nothing where `init` is no detector's weights file.

    Classes are the same where their names are, or where `init_classes` says so; the others keep their fresh rows, and
    so do all class layers where only this detector has global context, and all box rows where offsets are divided by
    other numbers. The RPN stays fresh where its anchors or channels are others. All of it is logged.

    Args:
        network: A detector ready to train.
        architecture: What it was built from.
        class_names: Its K names.
        init: The configuration's `model.init`.
        init_classes: Name here -> name in `init`.

    Raises:
        ConfigError: `init_classes` names a class that does not exist, here or there, or `init` is no detector.
        WeightsError: The file is damaged, or has global context and the network has not.
    """
    found = _find_detector(architecture, class_names, init, init_classes)
    if found is None:
        return
    assert init is not None
    tensors, metadata, theirs = found
    _take_over_rpn(network, architecture, theirs, tensors, init)
    place = {name: row for row, name in enumerate(metadata.class_names)}
    rows = {
        own: place[init_classes.get(name, name)]
        for own, name in enumerate(class_names)
        if init_classes.get(name, name) in place
    }
    if architecture.global_context and not theirs.global_context:
        log.warning(
            "the class layers start fresh: the model has global context (model.global_context), %s has none",
            init,
        )
        return
    same_offsets = architecture.target_stds == theirs.target_stds
    _take_over_classes(network, tensors, rows, same_offsets)
    if not same_offsets:
        log.warning("the box layer starts fresh: rcnn.target_stds are others in %s", init)
    layers = "class layers" if same_offsets else "class layer"
    _log_classes(layers, class_names, metadata.class_names, rows, init)


def _find_detector(
    architecture: Architecture, class_names: Sequence[str], init: str | None, init_classes: Mapping[str, str]
) -> tuple[dict[str, Tensor], Metadata, Architecture] | None:
    """The detector `init` and its architecture, checked against ours; None where `init` is anything else."""
    found = _read_detector(init)
    if found is None:
        if init_classes:
            raise ConfigError(
                f"model.init_classes says which classes of model.init are meant, but {init} is no detector's weights"
                " file: leave it out"
            )
        return None
    assert init is not None
    tensors, metadata = found
    theirs = architecture_of(metadata, Architecture, init)
    if theirs.global_context and not architecture.global_context:
        raise WeightsError(
            f"{init}: weights with global context, the model has none: set model.global_context: true, or choose"
            " weights without it"
        )
    _check_names(init_classes, class_names, metadata.class_names, init)
    return tensors, metadata, theirs


def _take_over_rpn(
    network: FasterRCNN, ours: Architecture, theirs: Architecture, tensors: Mapping[str, Tensor], init: str
) -> None:
    keys = ("anchor_sizes", "anchor_ratios", "rpn_channels")
    other = [key for key in keys if getattr(ours, key) != getattr(theirs, key)]
    if other:
        said = [f"{key} {getattr(theirs, key)}, here {getattr(ours, key)}" for key in other]
        log.warning("the RPN starts fresh: %s has %s", init, listed(said))
        return
    prefix = "rpn."
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    load_tensors(network.rpn, own, where=init)


@torch.no_grad()
def _take_over_classes(
    network: FasterRCNN, tensors: Mapping[str, Tensor], rows: Mapping[int, int], same_offsets: bool
) -> None:
    """Copy rows (here -> there) of both sibling layers, and background's, which is last, with them."""
    head = network.region_head
    if not rows:
        return
    own, there = list(rows), list(rows.values())
    for kind in ("weight", "bias"):
        logits, deltas = head.class_logits.get_parameter(kind), head.box_deltas.get_parameter(kind)
        logits[[*own, -1]] = tensors[f"region_head.class_logits.{kind}"][[*there, -1]].to(
            logits
        )  # (K + 1, D)
        if same_offsets:
            of_class = tensors[f"region_head.box_deltas.{kind}"].unflatten(0, (-1, 4))  # (K, 4, D)
            deltas.view(-1, 4, *deltas.shape[1:])[own] = of_class[there].to(deltas)


def _log_classes(
    layers: str, ours: Sequence[str], theirs: Sequence[str], rows: Mapping[int, int], init: str
) -> None:
    taken = [
        ours[own] if ours[own] == theirs[there] else f"{ours[own]} (there {theirs[there]})"
        for own, there in rows.items()
    ]
    fresh = [name for own, name in enumerate(ours) if own not in rows]
    log.info(
        "%s: %d of %d classes taken over from %s: %s; fresh: %s",
        layers,
        len(taken),
        len(ours),
        init,
        listed(taken, 100) or "none",
        listed(fresh, 100) or "none",
    )


def _check_names(
    init_classes: Mapping[str, str], ours: Sequence[str], theirs: Sequence[str], init: str
) -> None:
    for name, there in init_classes.items():
        for wanted, names, whose in ((name, ours, "the training data"), (there, theirs, init)):
            if wanted not in names:
                raise ConfigError(
                    f"model.init_classes: {name}: {there}: {whose} has no class '{wanted}'{nearest(wanted, names)};"
                    f" it has {listed(names, 30)}"
                )


def _read_detector(init: str | None) -> tuple[dict[str, Tensor], Metadata] | None:
    """The weights file of a detector of ours, None where `init` is anything else."""
    if init is None or init.startswith(TORCHVISION_PREFIX):
        return None
    path = find_weights(init)
    if path.suffix != ".safetensors" or not is_ours(read_safetensors(path)[1]):
        return None
    tensors, metadata = read_weights(path)
    return (tensors, metadata) if metadata.task == "detection" else None
