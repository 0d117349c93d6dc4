"""The detector that is measured, and the images it sees: made from a seed, the same in every process.

He et al. 2015, Appendix A; Ren et al. 2015, §3.3 (shorter side 600, 300 proposals). Random weights, but with the
activations and the spread of outputs that trained ones have: all-zero maps or one class would flatter or slow a side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN

from benchmarks.peers.composition import parts_of, torchvision_faster_rcnn
from detres.boxes.geometry import scale_boxes
from detres.data.decoding import read_image
from detres.data.detection_samples import DetectionSample
from detres.data.preprocessing import TORCHVISION, normalize, to_tensor
from detres.data.shapes import shapes_annotations
from detres.data.transforms import resize_image
from detres.detection.build import build_detector
from detres.detection.config import (
    DetectionModelConfig,
    DetectionTestConfig,
    DetectorArchitecture,
    RCNNConfig,
    RPNConfig,
)
from detres.detection.faster_rcnn import FasterRCNN
from detres.networks.config import NetworkConfig
from detres.networks.norm import freeze_batch_norm, update_batch_norm_statistics
from detres.networks.resnet import Block, build_network, split_network

CLASSES = 80
SIDE = 600  # shorter side for which the anchors below are
ANCHOR_SIDES = (128.0, 256.0, 512.0)
# Standard deviations.
SPREADS = {"objectness": 2.0, "anchor deltas": 0.2, "classes": 3.0, "class deltas": 0.5}
BETA = 1 / 9  # of both smooth L1 losses: torchvision has it built in
SEED = 0
DAMPING = 0.3  # of a block's branch beside its shortcut
SMALLEST_SIDE = 128  # of the image that statistics come from


@dataclass(frozen=True)
class DetectorOptions:
    """What is measured.

    Attributes:
        network: Its name.
        size: Height and width of the images.
        proposals: Regions an image at test.
        batch: Pictures at once.
        precisions: `float32`, `bfloat16`.
        device: Where.
        classes: Of the detector.
        objects: In each image of a training step; 0: as drawn.
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
        """The paper's detector; anchors and smallest proposals are smaller in smaller images.

        The loss has fewer samples in small images, so that every image has as many as the others.
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

    @property
    def test(self) -> DetectionTestConfig:
        """The paper's test with the number of proposals asked for."""
        return DetectionTestConfig(proposals=self.proposals)


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
    """`options.proposals` boxes (R, 4) all over an image, from the seed: the same for every precision and side."""
    height, width = options.size
    corners = torch.rand(options.proposals, 2, 2, generator=torch.Generator().manual_seed(SEED))
    first, second = corners.amin(dim=1), corners.amax(dim=1)
    boxes = torch.cat((first, second), dim=1) * torch.tensor([width, height, width, height])
    return boxes.to(options.device)


def draw_samples(size: tuple[int, int], count: int, device: str) -> list[DetectionSample]:
    """The first `count` drawn scenes that have objects, resized to (height, width) whatever their aspect.

    These are the originals of a batch, so their scale is 1.
    """
    scenes = shapes_annotations("train", 2 * count + 8, seed=SEED)
    places = [i for i in range(len(scenes)) if scenes.objects(i).stop > scenes.objects(i).start][:count]
    samples = []
    for place in places:
        image = read_image(scenes.paths[place])
        rows, stretch = scenes.objects(place), (size[0] / image.shape[0], size[1] / image.shape[1])
        sample = DetectionSample(
            image=to_tensor(resize_image(image, *size)),
            boxes=scale_boxes(torch.from_numpy(scenes.boxes[rows]), stretch),
            labels=torch.from_numpy(scenes.labels[rows]),
            scale=(1.0, 1.0),
            size=size,
            image_id=str(place),
            index=place,
            name=str(place),
        )
        samples.append(sample.to(torch.device(device)))
    return samples


def training_samples(options: DetectorOptions) -> list[DetectionSample]:
    """The images of a training step; where `options.objects` is given, with that many boxes all over each."""
    samples = draw_samples(options.size, options.batch, options.device)
    if not options.objects:
        return samples
    boxes = fixed_regions(replace(options, proposals=options.objects))
    labels = torch.arange(options.objects, device=boxes.device) % options.classes
    return [replace(sample, boxes=boxes, labels=labels) for sample in samples]


@torch.no_grad()
def random_detector(options: DetectorOptions) -> FasterRCNN:
    """The detector of `options` in test mode on its device; the same weights at each call.

    Each BN's constants are the statistics of an image (branches damped, as training leaves them: at random, rounding
    would grow from block to block), and the output layers are scaled until logits and deltas have the `SPREADS`; both
    on an image of half the sides, in float32.
    """
    half = max(SMALLEST_SIDE, options.size[0] // 2), max(SMALLEST_SIDE, options.size[1] // 2)
    image = draw_samples(half, 1, "cpu")[0].image
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


def build_peer(network: FasterRCNN, options: DetectorOptions, channels_last: bool) -> TorchvisionFasterRCNN:
    """The composition without torchvision's padding of images to multiples of 32, which ours does not have.

    It takes the anchors' stride as image // map, 15 for 600 rows on 38; here it is the network's.
    """
    peer = torchvision_faster_rcnn(network, options.architecture, options.test)
    transform: Any = peer.transform
    transform.size_divisible = 1
    generator = parts_of(peer)[0].anchor_generator
    grid_anchors = generator.grid_anchors

    def grid_at_stride(sizes: Any, strides: list[list[Tensor]]) -> Any:
        return grid_anchors(
            sizes, [[torch.full_like(side, network.stride) for side in of_map] for of_map in strides]
        )

    generator.grid_anchors = grid_at_stride
    return peer.to(memory_format=torch.channels_last) if channels_last else peer  # type: ignore[call-overload]


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
