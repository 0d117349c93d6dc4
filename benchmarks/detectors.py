"""The detector that is measured, and the pictures it sees: made from a seed, the same in every process.

He et al. 2015, Appendix A; Ren et al. 2015, §3.3 (shorter side 600, 300 proposals). Random weights, but with the
activations and the spread of outputs that trained ones have: all-zero maps or one class would flatter or slow a side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN

from benchmarks.peers.composition import parts_of
from detres.boxes.geometry import scale_boxes
from detres.data.decoding import read_image
from detres.data.detection_samples import DetectionSample
from detres.data.preprocessing import TORCHVISION, normalize, to_tensor
from detres.data.shapes import shapes_annotations
from detres.data.transforms import resize_image
from detres.detection.build import build_detector
from detres.detection.config import DetectionModelConfig, DetectorArchitecture, RCNNConfig, RPNConfig
from detres.detection.faster_rcnn import FasterRCNN
from detres.networks.config import NetworkConfig
from detres.networks.norm import freeze_batch_norm, update_batch_norm_statistics
from detres.networks.resnet import Block, build_network, split_network

CLASSES = 80
SIDE = 600  # shorter side for which the anchors below are
ANCHOR_SIDES = (128.0, 256.0, 512.0)
SPREADS = {
    "objectness": 2.0,
    "anchor deltas": 0.2,
    "classes": 3.0,
    "class deltas": 0.5,
}  # standard deviations
BETA = 1 / 9  # of both smooth L1 losses: torchvision has it built in
SEED = 0
DAMPING = 0.3  # of a block's branch beside its shortcut
SMALLEST_SIDE = 128  # of the picture that statistics come from


@dataclass(frozen=True)
class DetectorOptions:
    """What is measured.

    Attributes:
        network: Its name.
        size: Height and width of the pictures.
        proposals: Regions a picture at test.
        batch: Pictures at once.
        precisions: `float32`, `bfloat16`.
        device: Where.
        classes: Of the detector.
        objects: In each picture of a training step; 0: as drawn.
    """

    network: str = "resnet50"
    size: tuple[int, int] = (600, 800)
    proposals: int = 300
    batch: int = 1
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    device: str = "cpu"
    classes: int = CLASSES
    objects: int = 0

    @property
    def network_config(self) -> NetworkConfig:
        """The paper's network with torchvision's place of the stride."""
        return NetworkConfig.model_validate({"name": self.network, "stride_in": "3x3", "pool": "torchvision"})

    @property
    def architecture(self) -> DetectorArchitecture:
        """The paper's detector; anchors and smallest proposals are smaller in smaller pictures.

        The loss has fewer samples in small pictures, so that every picture has as many as the others.
        """
        scale = min(self.size) / SIDE
        anchors = (self.size[0] // 16) * (self.size[1] // 16) * 9
        return DetectorArchitecture(
            model=DetectionModelConfig(network=self.network_config, pooler="roi_align"),
            rpn=RPNConfig(
                anchor_sizes=tuple(side * scale for side in ANCHOR_SIDES),
                cross_boundary=True,
                batch_size_per_image=min(256, anchors // 4),
                smooth_l1_beta=BETA,
                min_size=16.0 * scale,
            ),
            rcnn=RCNNConfig(batch_size_per_image=min(128, anchors // 16), smooth_l1_beta=BETA),
        )


@dataclass(frozen=True)
class Images:
    """A batch of drawn pictures.

    Attributes:
        images: For each (3, H, W) uint8 RGB.
        boxes: For each (G, 4), G >= 1, in its pixels.
        labels: For each (G,) int64.
    """

    images: list[Tensor]
    boxes: list[Tensor]
    labels: list[Tensor]

    @property
    def samples(self) -> list[DetectionSample]:
        """The pictures as a training batch; they are the originals, not resized."""
        return [
            DetectionSample(
                image=image,
                boxes=boxes,
                labels=labels,
                scale=(1.0, 1.0),
                size=(image.shape[1], image.shape[2]),
                image_id=str(index),
                index=index,
                name=str(index),
            )
            for index, (image, boxes, labels) in enumerate(
                zip(self.images, self.boxes, self.labels, strict=True)
            )
        ]


class RawOutputs(NamedTuple):
    """What the networks give before boxes are made; A anchors, R regions, K classes.

    Attributes:
        objectness: (N, h * w * A) logits, ours in order.
        logits: (R, K + 1), background last.
        deltas: (R, K, 4).
    """

    objectness: Tensor
    logits: Tensor
    deltas: Tensor

    @staticmethod
    def of_torchvision(objectness: Tensor, logits: Tensor, deltas: Tensor) -> RawOutputs:
        """From (N, A, h, w), (R, 1 + K) with background first, and (R, (1 + K) * 4)."""
        return RawOutputs(
            objectness.permute(0, 2, 3, 1).flatten(1),
            torch.cat((logits[:, 1:], logits[:, :1]), dim=1),
            deltas.unflatten(1, (-1, 4))[:, 1:],
        )


def fixed_regions(options: DetectorOptions) -> Tensor:
    """`options.proposals` boxes (R, 4) all over a picture, from the seed: the same for every precision and side."""
    height, width = options.size
    corners = torch.rand(options.proposals, 2, 2, generator=torch.Generator().manual_seed(SEED))
    first, second = corners.amin(dim=1), corners.amax(dim=1)
    boxes = torch.cat((first, second), dim=1) * torch.tensor([width, height, width, height])
    return boxes.to(options.device)


def drawn_images(size: tuple[int, int], count: int, device: str) -> Images:
    """The first `count` drawn scenes that have objects, resized to (height, width) whatever their aspect."""
    scenes = shapes_annotations("train", 2 * count + 8, seed=SEED)
    places = [i for i in range(len(scenes)) if scenes.objects(i).stop > scenes.objects(i).start][:count]
    images, boxes, labels = [], [], []
    for place in places:
        image = read_image(scenes.paths[place])
        scale = size[0] / image.shape[0], size[1] / image.shape[1]
        rows = scenes.objects(place)
        images.append(to_tensor(resize_image(image, *size)).to(device))
        boxes.append(scale_boxes(torch.from_numpy(scenes.boxes[rows]), scale).to(device))
        labels.append(torch.from_numpy(scenes.labels[rows]).to(device))
    return Images(images, boxes, labels)


@torch.no_grad()
def random_detector(options: DetectorOptions) -> FasterRCNN:
    """The detector of `options` in test mode on its device; the same weights at each call.

    Each BN's constants are the statistics of a picture (branches damped, as training leaves them: at random, rounding
    would grow from block to block), and the output layers are scaled until logits and deltas have the `SPREADS`; both
    on a picture of half the sides, in float32.
    """
    half = max(SMALLEST_SIDE, options.size[0] // 2), max(SMALLEST_SIDE, options.size[1] // 2)
    (image,) = drawn_images(half, 1, "cpu").images
    architecture = options.architecture
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        plain = build_network(architecture.model.network, options.classes)
        for block in plain.modules():
            if isinstance(block, Block):
                last = block.get_submodule(f"bn{block.depth}")
                assert isinstance(last, nn.BatchNorm2d)
                nn.init.constant_(last.weight, DAMPING)
        update_batch_norm_statistics(plain, [normalize(image[None], TORCHVISION)])
        detector = build_detector(architecture, options.classes, TORCHVISION).eval()
        trunk, body = split_network(freeze_batch_norm(plain))
        detector.trunk.load_state_dict(trunk.state_dict())
        detector.roi_head.body.load_state_dict(body.state_dict())
        _spread(detector, image)
    return detector.to(options.device)


def unpadded(peer: TorchvisionFasterRCNN, stride: int) -> TorchvisionFasterRCNN:
    """The composition without torchvision's padding of pictures to multiples of 32, which ours does not have.

    It takes the anchors' stride as picture // map, 15 for 600 rows on 38; here it is the network's.
    """
    transform: Any = peer.transform
    transform.size_divisible = 1
    generator = parts_of(peer)[0].anchor_generator
    grid_anchors = generator.grid_anchors

    def at_stride(sizes: Any, strides: list[list[Tensor]]) -> Any:
        fixed = [[torch.full_like(side, stride) for side in of_map] for of_map in strides]
        return grid_anchors(sizes, fixed)

    generator.grid_anchors = at_stride
    return peer


def crowded(images: Images, options: DetectorOptions) -> Images:
    """The pictures with `options.objects` boxes in each, all over them; as they are where that is 0."""
    if not options.objects:
        return images
    boxes = fixed_regions(replace(options, proposals=options.objects))
    labels = torch.arange(options.objects, device=boxes.device) % options.classes
    count = len(images.images)
    return Images(images.images, [boxes] * count, [labels] * count)


def _spread(detector: FasterRCNN, image: Tensor) -> None:
    (output,) = detector([image])
    rpn, head = detector.rpn, detector.roi_head
    rpn.cls_logits.weight.mul_(SPREADS["objectness"] / output.objectness.std())
    rpn.bbox_pred.weight.mul_(SPREADS["anchor deltas"] / output.deltas.std())
    regions = output.anchors[torch.randperm(len(output.anchors))[:32]]
    logits, deltas = head([output.features], [regions], [output.size])
    for layer, values, spread in (
        (head.box_predictor.cls_score, logits, SPREADS["classes"]),
        (head.box_predictor.bbox_pred, deltas, SPREADS["class deltas"]),
    ):
        means = values.mean(dim=0)
        factor = spread / (values - means).std()
        layer.weight.mul_(factor)
        layer.bias.sub_(means.flatten() * factor)
