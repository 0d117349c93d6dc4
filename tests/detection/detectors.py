"""Small detectors, pictures and comparisons that the tests of this room share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from detres.data.decoding import read_image
from detres.data.detection_samples import DetectionSample
from detres.data.preprocessing import TORCHVISION, Preprocessing
from detres.data.records import Annotations, Strings
from detres.data.shapes import shapes_annotations
from detres.data.transforms import resize_boxes, resize_image
from detres.detection.build import build_detector
from detres.detection.config import DetectionTestConfig, DetectorArchitecture
from detres.detection.detect import detect_image
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.features import (
    DetectorMember,
    ImageFeatures,
    ResizedImage,
    extract_features,
    resize_for_members,
)
from detres.detection.postprocess import Detections
from detres.networks.norm import FrozenBatchNorm2d

Images = tuple[list[Tensor], list[Tensor], list[Tensor]]


def small_architecture(
    name: str = "resnet18", width: float = 0.25, **changes: Mapping[str, object]
) -> DetectorArchitecture:
    """A detector with anchors for images of some hundred pixels.

    Args:
        name: The network.
        width: Factor on its channels.
        changes: For each section (`model`, `rpn`, `rcnn`) the keys that differ.
    """
    sections: dict[str, dict[str, object]] = {
        "model": {"network": {"name": name, "width": width, "stride_in": "3x3"}, "pooler": "roi_align"},
        "rpn": {"channels": 64, "anchor_sizes": (32.0, 64.0, 128.0), "min_size": 4.0},
        "rcnn": {},
    }
    return DetectorArchitecture.model_validate(
        {section: {**keys, **changes.get(section, {})} for section, keys in sections.items()}
    )


def changed(architecture: DetectorArchitecture, **changes: Mapping[str, object]) -> DetectorArchitecture:
    """The same with other keys in some sections."""
    update = {name: getattr(architecture, name).model_copy(update=keys) for name, keys in changes.items()}
    return architecture.model_copy(update=update)


def detector_with_spread_scores(
    architecture: DetectorArchitecture,
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
    rpn, head = network.rpn, network.roi_head
    for layer, values, spread in (
        (rpn.cls_logits, output.objectness, 2.0),
        (rpn.bbox_pred, output.deltas, 0.2),
    ):
        layer.weight.mul_(spread / values.std())
    regions = output.anchors[torch.randperm(len(output.anchors))[:32]]
    logits, deltas = head([output.features], [regions], [output.size])
    predictor = head.box_predictor
    for layer, values, spread in ((predictor.cls_score, logits, 4.0), (predictor.bbox_pred, deltas, 0.5)):
        layer.weight.mul_(spread / (values - values.mean(dim=0)).std())
        layer.bias.sub_(values.mean(dim=0).flatten() * spread / (values - values.mean(dim=0)).std())


def member_of(
    network: FasterRCNN, architecture: DetectorArchitecture, short_side: int = 96, long_side: int = 160
) -> DetectorMember:
    """A network as one member of a test."""
    return DetectorMember(network, architecture, short_side, long_side)


def resized_for(
    members: Sequence[DetectorMember], image: Tensor, test: DetectionTestConfig
) -> list[ResizedImage]:
    """An image (3, H, W) as each member takes it."""
    return resize_for_members(image.permute(1, 2, 0).numpy(), members, test.scales)


def detect_with(members: Sequence[DetectorMember], image: Tensor, test: DetectionTestConfig) -> Detections:
    """Detections of an image (3, H, W) of any size."""
    return detect_image(members, resized_for(members, image, test), test)


def detect_as_is(
    network: FasterRCNN,
    architecture: DetectorArchitecture,
    image: Tensor,
    test: DetectionTestConfig,
    scale: tuple[float, float] = (1.0, 1.0),
) -> Detections:
    """Detections of one network in an image (3, h, w) that is resized already, by `scale` from the original."""
    own = 1  # whatever its size: the only one
    member = DetectorMember(network, architecture, own, own)
    return detect_image([member], [ResizedImage({own: image}, scale)], test)


def features_of(member: DetectorMember, image: Tensor, test: DetectionTestConfig) -> ImageFeatures:
    """One image through one member; to be called where no gradients are wanted."""
    (resized,) = resized_for([member], image, test)
    return extract_features(member, resized, test.scales, test.flip)


def samples_of(
    images: Images,
    scales: Sequence[tuple[float, float]] | None = None,
    exhaustive: Sequence[bool] | None = None,
) -> list[DetectionSample]:
    """A training batch of images, boxes and labels."""
    count = len(images[0])
    return [
        DetectionSample(
            image=image,
            boxes=boxes,
            labels=labels,
            scale=scale,
            size=(image.shape[1], image.shape[2]),
            image_id=str(index),
            index=index,
            name=str(index),
            exhaustive=whole,
        )
        for index, (image, boxes, labels, scale, whole) in enumerate(
            zip(*images, scales or [(1.0, 1.0)] * count, exhaustive or [True] * count, strict=True)
        )
    ]


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
    detections: Detections, expected: Detections, *, score: float = 1e-4, box: float = 0.05, lowest: float
) -> None:
    """Each detection has its own counterpart of the same class; the order among near-ties does not matter.

    One that scores within `score` of `lowest`, where detections were cut off, may be missing on either side.
    """
    free = set(range(len(expected.scores)))
    alone = []
    for row in range(len(detections.scores)):
        alike = [
            other
            for other in free
            if detections.labels[row] == expected.labels[other]
            and abs(detections.scores[row] - expected.scores[other]) <= score
            and (detections.boxes[row] - expected.boxes[other]).abs().max() <= box
        ]
        if alike:
            free.remove(
                min(
                    alike,
                    key=lambda other: float((detections.boxes[row] - expected.boxes[other]).abs().max()),
                )
            )
        else:
            alone.append(float(detections.scores[row]))
    alone += [float(expected.scores[other]) for other in free]
    surprising = [value for value in alone if abs(value - lowest) > score]
    assert not surprising, f"detections without a counterpart, by score: {surprising}"
