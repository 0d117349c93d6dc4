"""What a detector's training starts from: a classification network, or a detector, perhaps of other classes.

He et al. 2015, Appendix A (ImageNet weights, frozen BN) and Appendix B (COCO, then VOC). Trunk and conv5_x come with
any backbone. From a detector the RPN is copied too, and of the class and box layers the rows of the classes that both
have.

K classes here, D channels of a region's feature.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detres.detection.build import build_detector
from detres.detection.config import DetectionModelConfig, DetectorArchitecture
from detres.detection.faster_rcnn import FasterRCNN
from detres.errors import ConfigError, WeightsError, listed, nearest
from detres.networks.norm import rescale_folded_convolutions
from detres.networks.resnet import Trunk, freeze_stages
from detres.networks.vgg import VGGTrunk
from detres.tasks.start import Start
from detres.weights.checkpoint import architecture_of
from detres.weights.foreign import Backbone
from detres.weights.loading import load_tensors

log = logging.getLogger("detres")


@dataclass(frozen=True)
class PretrainedDetector:
    """A detector that a training starts from, checked against the one to be trained.

    Attributes:
        tensors: Of its weights file.
        architecture: Its options.
        rows: Class here -> its row there, for the classes that both have.
        class_names: Its classes.
        source: The file, for messages.
    """

    tensors: dict[str, Tensor]
    architecture: DetectorArchitecture
    rows: dict[int, int]
    class_names: tuple[str, ...]
    source: str


def start_detector(
    model: DetectionModelConfig,
    architecture: DetectorArchitecture,
    start: Start,
    class_names: Sequence[str],
    seed: int,
) -> FasterRCNN:
    """A detector ready to train: seeded fresh layers, initial weights, frozen stages.

    Args:
        model: Initial weights and frozen stages.
        architecture: The detector's options, its network completed by `start`.
        start: The initial weights.
        class_names: Its K names.
        seed: Of the fresh layers.

    Raises:
        ConfigError, WeightsError: As `check_pretrained`; or the weights lack parts of trunk or conv5_x.
    """
    pretrained = check_pretrained(model, architecture, start, class_names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_detector(architecture, len(class_names), start.preprocessing.per_channel())
    if start.backbone is None:
        random = [f"trunk.{name}" for name in network.trunk.state_dict()]
        log.warning("model.init is not given: the detector starts from random weights")
    else:
        random = load_backbone(network, start.backbone, partial=model.init_partial)
        if random:
            log.info("random, not in %s: %s", start.backbone.source, listed(random, 40))
        rescaled = rescale_folded_convolutions(network)
        if rescaled:
            log.info(
                "%s: BN is folded into %d convolutions; they are rescaled to train as unfolded ones do",
                start.backbone.source,
                rescaled,
            )
    _warn_of_frozen_random_layers(network.trunk, random, model.freeze_at)
    freeze_stages(network.trunk, model.freeze_at)
    if pretrained is not None:
        load_pretrained_detector(network, architecture, pretrained, class_names)
    return network


def load_backbone(network: FasterRCNN, backbone: Backbone, *, partial: bool) -> list[str]:
    """Copy a classification network's weights into trunk and head.

    Args:
        network: A detector on the backbone's network.
        backbone: The weights.
        partial: Allow missing tensors.

    Returns:
        Names of trunk and head tensors that stay random.

    Raises:
        WeightsError: Tensors are missing and `partial` does not allow it, or differ in shape.
    """
    whole = nn.ModuleDict({"trunk": network.trunk, "head": network.roi_head.body})
    names = {name.split(".", 1)[1]: name for name in whole.state_dict()}
    tensors = {names[name]: tensor for name, tensor in backbone.features().items() if name in names}
    missing = load_tensors(whole, tensors, where=backbone.source, partial=True)
    if missing and not partial:
        raise WeightsError(
            f"{backbone.source}: lacks {listed([name.split('.', 1)[1] for name in missing], 4)}; choose whole weights,"
            " or allow it with model.init_partial: true"
        )
    return missing


def check_pretrained(
    model: DetectionModelConfig, architecture: DetectorArchitecture, start: Start, class_names: Sequence[str]
) -> PretrainedDetector | None:
    """The detector in `start`, checked against the one to be trained; None where `start` is no detector.

    Args:
        model: Its `init_classes` names classes that have another name there.
        architecture: Of the detector to be trained.
        start: The initial weights.
        class_names: Of the detector to be trained.

    Raises:
        ConfigError: `init_classes` names a class that does not exist, here or there, or `init` is no detector.
        WeightsError: `init` has global context and the model has not.
    """
    checkpoint = start.backbone.checkpoint if start.backbone is not None else None
    if checkpoint is None or checkpoint[1].task != "detection":
        if model.init_classes:
            raise ConfigError(
                f"model.init_classes says which classes of model.init are meant, but {model.init} is no detector's"
                " weights file: leave it out"
            )
        return None
    tensors, metadata = checkpoint
    source = str(model.init)
    theirs = architecture_of(metadata, DetectorArchitecture, source)
    if theirs.model.global_context and not architecture.model.global_context:
        raise WeightsError(
            f"{source}: weights with global context, the model has none: set model.global_context: true, or choose"
            " weights without it"
        )
    _check_init_classes(model.init_classes, class_names, metadata.class_names, source)
    row = {name: row for row, name in enumerate(metadata.class_names)}
    name_there = [model.init_classes.get(name, name) for name in class_names]
    rows = {label: row[name] for label, name in enumerate(name_there) if name in row}
    return PretrainedDetector(tensors, theirs, rows, metadata.class_names, source)


def load_pretrained_detector(
    network: FasterRCNN,
    architecture: DetectorArchitecture,
    pretrained: PretrainedDetector,
    class_names: Sequence[str],
) -> None:
    """Copy what a detector has beyond a backbone, and log what is copied and what is re-initialized.

    The RPN is copied where its anchors and channels are the same. Rows of the class and box layers are copied for
    classes with matching names; the others are re-initialized. All class and box rows are re-initialized where only
    this detector has global context, and all box rows where the target stds differ.

    Args:
        network: A detector ready to train.
        architecture: What it was built from.
        pretrained: From `check_pretrained`.
        class_names: Its K names.
    """
    theirs, source = pretrained.architecture, pretrained.source
    _load_rpn(network, architecture, pretrained)
    if architecture.model.global_context and not theirs.model.global_context:
        log.warning(
            "the class and box layers are re-initialized: the model has global context (model.global_context),"
            " %s has none",
            source,
        )
        return
    same_stds = architecture.rcnn.target_stds == theirs.rcnn.target_stds
    _load_classes(network, pretrained, same_stds)
    if not same_stds:
        log.warning("the box layer is re-initialized: %s was trained with other rcnn.target_stds", source)
    layers = "class and box layers" if same_stds else "class layer"
    _log_classes(layers, class_names, pretrained)


def _load_rpn(network: FasterRCNN, ours: DetectorArchitecture, pretrained: PretrainedDetector) -> None:
    theirs, source = pretrained.architecture, pretrained.source
    different = [
        f"rpn.{key} {getattr(theirs.rpn, key)}, here {getattr(ours.rpn, key)}"
        for key in ("anchor_sizes", "aspect_ratios", "channels")
        if getattr(ours.rpn, key) != getattr(theirs.rpn, key)
    ]
    if different:
        log.warning("the RPN is re-initialized: %s has %s", source, listed(different))
        return
    prefix = "rpn."
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in pretrained.tensors.items()
        if name.startswith(prefix)
    }
    load_tensors(network.rpn, tensors, where=source)


@torch.no_grad()
def _load_classes(network: FasterRCNN, pretrained: PretrainedDetector, same_stds: bool) -> None:
    """Copy rows of the class layer and the box layer, and background's row of the class layer, which is the last."""
    if not pretrained.rows:
        return
    here, there = list(pretrained.rows), list(pretrained.rows.values())
    predictor, prefix = network.roi_head.box_predictor, "roi_head.box_predictor"
    for kind in ("weight", "bias"):
        scores, boxes = predictor.cls_score.get_parameter(kind), predictor.bbox_pred.get_parameter(kind)
        their_scores = pretrained.tensors[f"{prefix}.cls_score.{kind}"]  # (K + 1, D)
        scores[[*here, -1]] = their_scores[[*there, -1]].to(scores)
        if same_stds:
            their_boxes = pretrained.tensors[f"{prefix}.bbox_pred.{kind}"].unflatten(0, (-1, 4))  # (K, 4, D)
            boxes.view(-1, 4, *boxes.shape[1:])[here] = their_boxes[there].to(boxes)


def _log_classes(layers: str, class_names: Sequence[str], pretrained: PretrainedDetector) -> None:
    copied = []
    for label, row in pretrained.rows.items():
        name, name_there = class_names[label], pretrained.class_names[row]
        copied.append(name if name == name_there else f"{name} (there {name_there})")
    fresh = [name for label, name in enumerate(class_names) if label not in pretrained.rows]
    log.info(
        "%s: rows of %d of %d classes are copied from %s: %s; re-initialized: %s",
        layers,
        len(copied),
        len(class_names),
        pretrained.source,
        listed(copied, 100) or "none",
        listed(fresh, 100) or "none",
    )


def _check_init_classes(
    init_classes: Mapping[str, str], ours: Sequence[str], theirs: Sequence[str], source: str
) -> None:
    for name, name_there in init_classes.items():
        for wanted, names, owner in ((name, ours, "the training data"), (name_there, theirs, source)):
            if wanted not in names:
                raise ConfigError(
                    f"model.init_classes: {name}: {name_there}: {owner} has no class '{wanted}'"
                    f"{nearest(wanted, names)}; it has {listed(names, 30)}"
                )


def _warn_of_frozen_random_layers(trunk: Trunk | VGGTrunk, random: list[str], freeze_at: int) -> None:
    """Layers that have random weights and are not trained stay noise."""
    frozen = {
        id(module) for stage in trunk.stages()[:freeze_at] for part in stage for module in part.modules()
    }
    names = [
        f"trunk.{name}.weight"
        for name, module in trunk.named_modules()
        if id(module) in frozen and isinstance(module, nn.Conv2d)
    ]
    noise = [name for name in names if name in random]
    if noise:
        log.warning(
            "model.freeze_at: %d freezes layers that have random weights: %s; set it to 0, or give whole weights",
            freeze_at,
            listed(noise, 3),
        )
