"""Small detectors, pictures and comparisons that the tests of this room share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from detres.data.decoding import read_image
from detres.data.preprocessing import TORCHVISION, Preprocessing
from detres.data.records import Annotations, Strings
from detres.data.shapes import shapes_annotations
from detres.data.transforms import resize_boxes, resize_image
from detres.detection.build import build_detector
from detres.detection.config import Architecture
from detres.detection.detect import TestConfig, detect_images
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.features import Member, SizedImage, View, look, sized_images
from detres.detection.roi_head import Detections
from detres.networks.config import NetworkConfig
from detres.networks.norm import FrozenBatchNorm2d

Images = tuple[list[Tensor], list[Tensor], list[Tensor]]


def small_architecture(name: str = "resnet18", width: float = 0.25, **changes: object) -> Architecture:
    """A detector with anchors for pictures of some hundred pixels; `changes` are fields of `Architecture`."""
    fields: dict[str, object] = {
        "network": NetworkConfig.model_validate({"name": name, "width": width, "stride_in": "3x3"}),
        "pooler": "roi_align",
        "sampling_ratio": 2,
        "aligned": False,
        "rpn_channels": 64,
        "anchor_sizes": (32.0, 64.0, 128.0),
        "anchor_ratios": (0.5, 1.0, 2.0),
        "proposal_nms": 0.7,
        "proposal_min_size": 4.0,
        "target_stds": (0.1, 0.1, 0.2, 0.2),
    }
    return Architecture.model_validate({**fields, **changes})


def detector_with_spread_scores(
    architecture: Architecture,
    num_classes: int,
    image: Tensor,
    preprocessing: Preprocessing = TORCHVISION,
    seed: int = 0,
) -> FasterRCNN:
    """A detector whose random weights give outputs that spread as a trained one's do.

    BN gets random constants (branches damped, or the maps would double in every block) and the output layers are
    scaled on `image` until logits and deltas have the spread that is stated below.
    """
    torch.manual_seed(seed)
    network = build_detector(architecture, num_classes, preprocessing)
    for name, norm in network.named_modules():
        if isinstance(norm, FrozenBatchNorm2d):
            last = name.endswith(("bn2", "bn3"))
            norm.weight.uniform_(0.2, 0.5) if last else norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.1)
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    if preprocessing.value_range == 255:
        network.trunk.conv1.weight.data /= 50  # type: ignore[union-attr]
    with torch.no_grad():
        _spread(network, image)
    return network.eval()


def _spread(network: FasterRCNN, image: Tensor) -> None:
    (output,) = network([image])
    rpn, head = network.rpn, network.region_head
    for layer, values, spread in ((rpn.objectness, output.objectness, 2.0), (rpn.deltas, output.deltas, 0.2)):
        layer.weight.mul_(spread / values.std())
    regions = output.anchors[torch.randperm(len(output.anchors))[:32]]
    logits, deltas = head([output.features], [regions], [output.size])
    for layer, values, spread in ((head.class_logits, logits, 4.0), (head.box_deltas, deltas, 0.5)):
        layer.weight.mul_(spread / (values - values.mean(dim=0)).std())
        layer.bias.sub_(values.mean(dim=0).flatten() * spread / (values - values.mean(dim=0)).std())


def member_of(
    network: FasterRCNN,
    architecture: Architecture,
    test: TestConfig,
    short_side: int = 96,
    long_side: int = 160,
) -> Member:
    """A network as one member of a test."""
    options = architecture.proposal_options(test)
    return Member(network, short_side, long_side, options, architecture.target_stds)


def sized_for(members: Sequence[Member], image: Tensor, test: TestConfig) -> list[SizedImage]:
    """An image (3, H, W) as each member wants it."""
    sides = [(member.short_side, member.long_side) for member in members]
    return sized_images(image.permute(1, 2, 0).numpy(), sides, test.scales)


def found_by(members: Sequence[Member], images: Sequence[Tensor], test: TestConfig) -> list[Detections]:
    """Detections of images (3, H, W) of any size."""
    return detect_images(members, [sized_for(members, image, test) for image in images], test)


def view_of(member: Member, image: Tensor, test: TestConfig) -> View:
    """One picture as one member sees it; to be called where no gradients are wanted."""
    return look(member, sized_for([member], image, test), test.scales, test.flip)


class Calls:
    """Counts the calls of modules while it is open.

    Args:
        modules: By name.
    """

    def __init__(self, **modules: nn.Module):
        self.modules = modules
        self.counts = dict.fromkeys(modules, 0)
        self.handles: list[RemovableHandle] = []

    def __enter__(self) -> dict[str, int]:
        for name, module in self.modules.items():
            self.handles.append(module.register_forward_pre_hook(partial(self._count, name)))
        return self.counts

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _count(self, name: str, *_: object) -> None:
        self.counts[name] += 1


def drawn_images(height: int, width: int, num_classes: int, count: int = 2) -> Images:
    """Images (3, height, width), boxes and labels (their remainders by `num_classes`) of drawn scenes with objects."""
    scenes = shapes_annotations("train", 4 * count, seed=5)
    lying = [
        index
        for index in range(len(scenes))
        if scenes.sizes[index, 0] < scenes.sizes[index, 1]
        and scenes.objects(index).stop > scenes.objects(index).start
    ]
    images, boxes, labels = images_of(scenes, lying[:count], height, width)
    return images, boxes, [of_image % num_classes for of_image in labels]


def images_of(annotations: Annotations, indices: Sequence[int], height: int, width: int) -> Images:
    """Images (3, height, width), boxes and labels of pictures of a split, resized without regard to their aspect."""
    images, boxes, labels = [], [], []
    for index in indices:
        image = read_image(annotations.paths[index])
        scale = height / image.shape[0], width / image.shape[1]
        resized = resize_image(image, height, width)
        images.append(torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1))))
        rows = annotations.objects(index)
        boxes.append(torch.from_numpy(resize_boxes(annotations.boxes[rows], scale)))
        labels.append(torch.from_numpy(annotations.labels[rows]))
    return images, boxes, labels


def annotations_of(paths: Sequence[str], sizes: Sequence[tuple[int, int]], boxes: Sequence[Sequence[Sequence[float]]],
                   class_names: tuple[str, ...] = ("thing",)) -> Annotations:  # fmt: skip
    """A split with the boxes given for each picture, all of the first class."""
    flat = np.array([box for of_image in boxes for box in of_image], dtype=np.float32).reshape(-1, 4)
    return Annotations(
        paths=Strings(list(paths)),
        image_ids=Strings([str(number) for number in range(len(paths))]),
        sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        upright=np.ones(len(paths), dtype=bool),
        offsets=np.cumsum([0, *(len(of_image) for of_image in boxes)], dtype=np.int64),
        boxes=flat,
        labels=np.zeros(len(flat), np.int64),
        crowd=np.zeros(len(flat), dtype=bool),
        difficult=np.zeros(len(flat), dtype=bool),
        areas=np.prod(flat[:, 2:].astype(np.float64) - flat[:, :2], axis=1),
        class_names=class_names,
    )


def assert_same_detections(
    found: Detections, expected: Detections, *, score: float = 1e-4, box: float = 0.05, lowest: float
) -> None:
    """Each detection has its own counterpart of the same class; the order among near-ties does not matter.

    One that scores within `score` of `lowest`, where detections were cut off, may be missing on either side.
    """
    free = set(range(len(expected.scores)))
    alone = []
    for row in range(len(found.scores)):
        alike = [
            other
            for other in free
            if found.labels[row] == expected.labels[other]
            and abs(found.scores[row] - expected.scores[other]) <= score
            and (found.boxes[row] - expected.boxes[other]).abs().max() <= box
        ]
        if alike:
            free.remove(
                min(alike, key=lambda other: float((found.boxes[row] - expected.boxes[other]).abs().max()))
            )
        else:
            alone.append(float(found.scores[row]))
    alone += [float(expected.scores[other]) for other in free]
    surprising = [value for value in alone if abs(value - lowest) > score]
    assert not surprising, f"detections without a counterpart, by score: {surprising}"
