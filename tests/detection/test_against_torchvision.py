"""The detector against the composition of torchvision's own classes on the same weights (`benchmarks.peers`).

All constants of both sides are in `architecture_of` and `TEST` below. Pictures have sides that are multiples of 32
(torchvision pads to 32 and takes the anchors' stride as image // map), RoIAlign is not shifted, and smooth L1 turns at
1/9 in both stages, as in torchvision.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from detectors import (
    Images,
    assert_same_detections,
    changed,
    detect_as_is,
    detector_with_spread_scores,
    drawn_images,
    images_of,
    samples_of,
)
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers

from benchmarks.peers.calling import (
    peer_detections,
    peer_images,
    peer_losses,
    peer_targets,
    same_samples,
    sample_targets,
    smallest_proposals,
)
from benchmarks.peers.composition import torchvision_faster_rcnn, torchvision_names
from detres.boxes.geometry import scale_boxes
from detres.data.formats import read_annotations
from detres.data.preprocessing import MSRA, TORCHVISION, Preprocessing, normalize
from detres.detection.config import DetectionTestConfig, DetectorArchitecture
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.losses import training_losses
from detres.detection.postprocess import decode_predictions
from detres.detection.roi_head import region_predictions
from detres.detection.rpn import propose
from detres.errors import ConfigError

HEIGHT, WIDTH = 128, 192
CLASSES = 5
TEST = DetectionTestConfig(
    score_thresh=0.02, detections_per_img=40, nms_thresh=0.5, proposals=16, pre_nms_top_n=300
)
MSRA_FORM = {"stride_in": "1x1", "pool": "caffe"}
TORCHVISION_FORM = {"stride_in": "3x3", "pool": "torchvision"}


def architecture_of(name: str, form: dict[str, Any], pooler: str = "roi_align") -> DetectorArchitecture:
    return DetectorArchitecture.model_validate(
        {
            "model": {
                "network": {"name": name, **form},
                "pooler": pooler,
                "sampling_ratio": 2,
                "aligned": False,
            },
            "rpn": {
                "channels": 128,
                "anchor_sizes": (32, 64, 128),
                "aspect_ratios": (0.5, 1, 2),
                "cross_boundary": False,
                "fg_iou_thresh": 0.7,
                "bg_iou_thresh": 0.3,
                "batch_size_per_image": 64,
                "positive_fraction": 0.5,
                "smooth_l1_beta": 1 / 9,
                "pre_nms_top_n": 300,
                "proposals": 24,
                "nms_thresh": 0.7,
                "min_size": 4,
            },
            "rcnn": {
                "batch_size_per_image": 8,
                "positive_fraction": 0.25,
                "fg_iou_thresh": 0.5,
                "bg_iou_thresh": 0.5,
                "bg_iou_thresh_lo": 0.0,
                "smooth_l1_beta": 1 / 9,
                "target_stds": (0.1, 0.1, 0.2, 0.2),
            },
        }
    )


@dataclass
class Case:
    """A detector and the pictures it sees."""

    architecture: DetectorArchitecture
    network: FasterRCNN
    images: Images

    @property
    def peer(self) -> Any:
        return torchvision_faster_rcnn(self.network, self.architecture, TEST)


CASES: dict[str, tuple[str, dict[str, Any], str, Preprocessing]] = {
    "resnet50, MSRA's form": ("resnet50", MSRA_FORM, "roi_align", MSRA),
    "resnet50, torchvision's form": ("resnet50", TORCHVISION_FORM, "roi_align", TORCHVISION),
    "resnet18": ("resnet18", TORCHVISION_FORM, "roi_align", TORCHVISION),
    "resnet18, RoI max pooling": ("resnet18", TORCHVISION_FORM, "roi_pool", TORCHVISION),
    "resnet18, narrow": ("resnet18", {**TORCHVISION_FORM, "width": 0.25}, "roi_align", TORCHVISION),
    "resnet50, narrow, MSRA's form": ("resnet50", {**MSRA_FORM, "width": 0.25}, "roi_align", MSRA),
    "VGG-16, narrow": ("vgg16", {**TORCHVISION_FORM, "width": 0.25}, "roi_align", TORCHVISION),
    "VGG-16, narrow, RoI max pooling": ("vgg16", {"pool": "caffe", "width": 0.25}, "roi_pool", TORCHVISION),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """A detector with random, lively weights on drawn pictures."""
    name, form, pooling, preprocessing = CASES[request.param]
    images = drawn_images(HEIGHT, WIDTH, CLASSES)
    architecture = architecture_of(name, form, pooling)
    return Case(
        architecture, detector_with_spread_scores(architecture, CLASSES, images[0][0], preprocessing), images
    )


@pytest.fixture(scope="module")
def real_case(real_data) -> Case:
    """The same on two real pictures."""
    voc, _ = read_annotations(real_data / "voc2007_mini", "train")
    images, boxes, labels = images_of(voc, (3, 8), HEIGHT, WIDTH)
    pictures = images, boxes, [label % CLASSES for label in labels]
    architecture = architecture_of("resnet18", TORCHVISION_FORM)
    return Case(architecture, detector_with_spread_scores(architecture, CLASSES, images[0]), pictures)


@torch.no_grad()
def test_each_stage_gives_the_same_on_the_same_inputs(case: Case):
    check_stages(case)


@torch.no_grad()
def test_each_stage_on_real_images(real_case: Case):
    check_stages(real_case)


def check_stages(case: Case) -> None:
    network, peer, (images, _, _) = case.network, case.peer, case.images
    outputs = network(images)
    maps = torch.cat([output.features for output in outputs])
    pixels = normalize(torch.stack(images), network.preprocessing)
    batch, _ = peer.transform(peer_images(images))
    torch.testing.assert_close(batch.tensors, pixels, rtol=1e-5, atol=1e-5 * float(pixels.abs().max()))
    close(maps, peer.backbone(pixels))

    logits, offsets = peer.rpn.head([maps])
    objectness, deltas = concat_box_prediction_layers(logits, offsets)
    close(torch.stack([output.objectness for output in outputs]), objectness.view(2, -1))
    close(torch.stack([output.deltas for output in outputs]), deltas.view(2, -1, 4))
    anchors = peer.rpn.anchor_generator(ImageList(pixels, [(HEIGHT, WIDTH)] * 2), [maps])
    for output, expected in zip(outputs, anchors, strict=True):
        torch.testing.assert_close(output.anchors, expected, rtol=0, atol=1e-4)  # pixels

    rpn, rcnn = case.architecture.rpn, case.architecture.rcnn
    decoded = peer.rpn.box_coder.decode(deltas, anchors).view(2, -1, 4)
    expected, _ = peer.rpn.filter_proposals(decoded, objectness, [(HEIGHT, WIDTH)] * 2, [len(anchors[0])])
    proposals = [propose(output, (1.0, 1.0), rpn, TEST) for output in outputs]
    for ours, theirs in zip(proposals, expected, strict=True):
        assert len(ours) == TEST.proposals
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)

    separate = [output.features for output in outputs]
    pooled = network.roi_head.pooler.pool(separate, proposals)
    close(pooled, peer.roi_heads.box_roi_pool({"0": maps}, proposals, [(HEIGHT, WIDTH)] * 2))
    logits, deltas = network.roi_head(separate, proposals, [(HEIGHT, WIDTH)] * 2)
    peer_logits, peer_deltas = peer.roi_heads.box_predictor(peer.roi_heads.box_head(pooled))
    close(logits, torch.cat((peer_logits[:, 1:], peer_logits[:, :1]), dim=1))
    close(deltas, peer_deltas.view(len(deltas), -1, 4)[:, 1:])
    boxes = peer.roi_heads.box_coder.decode(peer_deltas, proposals)[:, 1:]
    predictions = region_predictions(logits, deltas, rcnn.target_stds)
    decoded_regions = decode_predictions(predictions, torch.cat(proposals), (10**6, 10**6))
    torch.testing.assert_close(decoded_regions.boxes, boxes.clamp(min=0), rtol=1e-5, atol=1e-2)


def close(ours: Tensor, theirs: Tensor) -> None:
    """Equal to 1e-5 of the largest value."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


def test_the_same_detections(case: Case):
    check_detections(case)


def test_the_same_detections_on_real_images(real_case: Case):
    check_detections(real_case)


def check_detections(case: Case) -> None:
    network, images = case.network, case.images[0]
    detections = [detect_as_is(network, case.architecture, image, TEST) for image in images]
    expected = peer_detections(case.peer, peer_images(images))
    for ours, theirs in zip(detections, expected, strict=True):
        assert len(ours.scores) >= 5
        assert ours.scores.max() - ours.scores.min() > 0.3, "scores that do not spread prove little"
        full = len(ours.scores) == TEST.detections_per_img
        lowest = float(ours.scores.min()) if full else TEST.score_thresh
        assert_same_detections(ours, theirs, score=1e-4, box=0.05, lowest=lowest)


def without_dropout(network: Any) -> Any:
    """VGG's dropout drops nothing: the two would draw other units (networks/test_resnet.py compares it)."""
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return network


def step(
    architecture: DetectorArchitecture, network: FasterRCNN, images: Images, seed: int = 1
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return training_losses(network, samples_of(images), architecture.rpn, architecture.rcnn, generator)


def peer_step(case: Case, network: FasterRCNN, pictures: Images, seed: int = 1):
    """The composition on the weights of `network`, and its losses on the samples that `step` draws."""
    peer: Any = torchvision_faster_rcnn(network, case.architecture, TEST)
    without_dropout(peer)
    assign = peer.rpn.assign_targets_to_anchors
    dtype = network.rpn.conv.weight.dtype

    def labels_in_the_networks_dtype(anchors, targets):  # float32 labels would make a float32 loss
        labels, matched = assign(anchors, targets)
        return [of_image.to(dtype) for of_image in labels], matched

    peer.rpn.assign_targets_to_anchors = labels_in_the_networks_dtype
    sections = case.architecture.rpn, case.architecture.rcnn
    targets = sample_targets(network, samples_of(pictures), *sections, torch.Generator().manual_seed(seed))
    images, boxes, labels = pictures
    inputs = peer_images(images, dtype)
    with same_samples(peer, *targets):
        return peer, peer_losses(peer, inputs, peer_targets(boxes, labels)), targets


@pytest.mark.parametrize(
    "case", [name for name in CASES if name != "resnet50, torchvision's form"], indirect=True, scope="module"
)
def test_the_same_losses_and_gradients_of_all_parameters(case: Case):
    check_gradients(case)


def test_the_same_losses_and_gradients_on_real_images(real_case: Case):
    check_gradients(real_case)


def check_gradients(case: Case) -> None:
    """In float64: float32 gradients differ by 1e-3 where a ReLU's sign flips."""
    images, boxes, labels = case.images
    pictures = images, [of_image.double() for of_image in boxes], labels
    network = without_dropout(copy.deepcopy(case.network).double().train())
    ours = step(case.architecture, network, pictures)
    peer, theirs, (anchors, regions) = peer_step(case, network, pictures)
    assert [len(target.indices) for target in anchors] == [case.architecture.rpn.batch_size_per_image] * 2
    assert [len(target.labels) for target in regions] == [case.architecture.rcnn.batch_size_per_image] * 2
    assert min(target.positives for target in anchors) > 0
    assert min(len(target.deltas) for target in regions) > 0
    for name, loss in ours.items():
        assert loss.item() == pytest.approx(theirs[name].item(), rel=1e-9), name
        assert loss.item() > 0
    torch.stack(list(ours.values())).sum().backward()
    torch.stack(list(theirs.values())).sum().backward()
    gradients = {
        name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None
    }
    assert len(gradients) == len(list(network.parameters()))
    expected = {name: parameter.grad for name, parameter in peer.named_parameters()}
    for name, gradient in torchvision_names(gradients).items():
        torch.testing.assert_close(
            gradient,
            expected.pop(name),
            rtol=0,
            atol=1e-8 * float(gradient.abs().max()),
            msg=lambda m, n=name: f"{n}: {m}",
        )
    assert not expected


def test_the_same_losses_in_float32(case: Case):
    network = without_dropout(copy.deepcopy(case.network).train())
    with torch.no_grad():
        ours = step(case.architecture, network, case.images)
        _, theirs, _ = peer_step(case, network, case.images)
    for name, loss in ours.items():
        assert loss.item() == pytest.approx(theirs[name].item(), rel=1e-4), name


def test_peer_trains_what_the_detector_trains_and_samples_by_itself():
    pictures = drawn_images(96, 128, CLASSES)
    architecture = architecture_of("resnet18", TORCHVISION_FORM)
    network = detector_with_spread_scores(architecture, CLASSES, pictures[0][0]).train()
    network.trunk.conv1.requires_grad_(False)  # type: ignore[union-attr]
    peer: Any = torchvision_faster_rcnn(network, architecture, TEST)
    assert peer.training
    frozen = [name for name, parameter in peer.named_parameters() if not parameter.requires_grad]
    assert frozen == ["backbone.conv1.weight"]
    images, targets = peer_images(pictures[0]), peer_targets(*pictures[1:])
    losses = [peer_losses(peer, images, targets) for _ in range(2)]
    assert losses[0]["objectness"] != losses[1]["objectness"]
    assert set(losses[0]) == set(step(architecture, network, pictures))


@pytest.mark.parametrize("min_size", [0.0, 40.0])
def test_the_smallest_proposal_is_in_pixels_of_each_original_image(min_size: float):
    """Two pictures that were resized by different factors, and differently in height and width."""
    pictures, scales = drawn_images(HEIGHT, WIDTH, CLASSES), [(0.5, 0.6), (1.5, 1.3)]
    images, boxes, labels = pictures
    architecture = architecture_of("resnet18", {**TORCHVISION_FORM, "width": 0.25})
    architecture = changed(architecture, rpn={"min_size": min_size})
    network = detector_with_spread_scores(architecture, CLASSES, images[0])
    peer: Any = torchvision_faster_rcnn(network, architecture, TEST)
    with torch.no_grad():
        expected = [
            propose(output, scale, architecture.rpn, TEST)
            for output, scale in zip(network(images), scales, strict=True)
        ]
        batch, _ = peer.transform(peer_images(images))
        with smallest_proposals(peer, scales):
            proposals, _ = peer.rpn(batch, {"0": peer.backbone(batch.tensors)})
    for ours, theirs, (vertical, horizontal) in zip(expected, proposals, scales, strict=True):
        assert len(ours) >= 3
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
        sides = theirs[:, 2:] - theirs[:, :2]
        assert (sides >= min_size * torch.tensor([horizontal, vertical]) - 1e-3).all()
    detections = [
        detect_as_is(network, architecture, image, TEST, scale)
        for image, scale in zip(images, scales, strict=True)
    ]
    for ours, theirs, scale in zip(
        detections, peer_detections(peer, peer_images(images), scales), scales, strict=True
    ):
        of_image = replace(theirs, boxes=scale_boxes(theirs.boxes, (1 / scale[0], 1 / scale[1])))
        assert_same_detections(ours, of_image, score=1e-4, box=0.1, lowest=float(ours.scores.min()))
    assert peer.rpn.min_size == min_size
    inputs = peer_images(images), peer_targets(boxes, labels)
    assert set(peer_losses(peer.train(), *inputs, scales)) == set(step(architecture, network, pictures))


def test_peer_computes_boxes_in_float32_under_autocast():
    images, _, _ = drawn_images(96, 128, CLASSES, count=1)
    architecture = architecture_of("resnet18", TORCHVISION_FORM)
    network = detector_with_spread_scores(architecture, CLASSES, images[0])
    peer: Any = torchvision_faster_rcnn(network, architecture, TEST)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = peer_detections(peer, peer_images(images))
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    torch.testing.assert_close(peer.rpn.anchor_generator.cell_anchors[0], network.cell_anchors)
    assert (found.boxes != found.boxes.bfloat16().float()).any()


def test_networks_that_torchvision_does_not_have_are_named():
    images, _, _ = drawn_images(64, 96, CLASSES, count=1)
    for name, form in (("plain18", {}), ("resnet18", {"shortcut": "A"})):
        architecture = architecture_of(name, {**TORCHVISION_FORM, **form})
        with pytest.raises(ConfigError, match="torchvision has no"):
            torchvision_faster_rcnn(
                detector_with_spread_scores(architecture, 2, images[0]), architecture, TEST
            )
