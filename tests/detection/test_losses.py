"""The four losses against loops in float64, and the cases in which nothing is there to be learnt."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from detectors import detector_with_spread_scores, drawn_images, small_architecture
from torch import Tensor

from detres.boxes.geometry import box_iou
from detres.detection.faster_rcnn import FasterRCNN, ImageOutputs
from detres.detection.losses import (
    StepOptions,
    draw_targets,
    region_losses,
    rpn_losses,
    training_losses,
)
from detres.detection.rpn import ProposalOptions
from detres.detection.targets import (
    AnchorSampling,
    AnchorTargets,
    RegionSampling,
    RegionTargets,
    sample_anchors,
    sample_regions,
)

CLASSES = 3
STEP = StepOptions(
    anchors=AnchorSampling(count=32),
    proposals=ProposalOptions(before_nms=100, after_nms=16, nms=0.7, min_size=4),
    regions=RegionSampling(count=8),
    num_classes=CLASSES,
)
NAMES = {"rpn_objectness", "rpn_box", "region_class", "region_box"}


@pytest.fixture(scope="module")
def network() -> FasterRCNN:
    images, _, _ = drawn_images(96, 128, CLASSES, count=1)
    return detector_with_spread_scores(small_architecture(), CLASSES, images[0]).train()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth_l1(difference: float, beta: float) -> float:
    size = abs(difference)
    return 0.5 * size * size / beta if size < beta else size - 0.5 * beta


def image_outputs(anchors: int, seed: int) -> ImageOutputs:
    generator = seeded(seed)
    objectness = torch.randn(anchors, generator=generator) * 3
    deltas = torch.randn(anchors, 4, generator=generator)
    return ImageOutputs(torch.zeros(1, 1, 1, 1), objectness, deltas, torch.zeros(anchors, 4), (8, 8))


def test_rpn_losses_equal_the_loop():
    outputs = [image_outputs(40, 1), image_outputs(30, 2)]
    wanted = torch.randn(3, 4, generator=seeded(3))
    targets = [
        AnchorTargets(torch.tensor([5, 7, 9, 1, 0]), 3, wanted),
        AnchorTargets(torch.tensor([4, 2]), 0, wanted[:0]),
    ]
    objectness_loss, box_loss, beta = 0.0, 0.0, 1 / 9
    for output, target in zip(outputs, targets, strict=True):
        count = len(target.indices)
        for place, anchor in enumerate(target.indices.tolist()):
            probability = 1 / (1 + math.exp(-output.objectness[anchor].item()))
            objectness_loss -= (
                math.log(probability if place < target.positives else 1 - probability) / count / 2
            )
            if place < target.positives:
                difference = (output.deltas[anchor] - target.deltas[place]).tolist()
                box_loss += sum(smooth_l1(value, beta) for value in difference) / count / 2
    losses = rpn_losses(outputs, targets, beta)
    assert losses["rpn_objectness"].item() == pytest.approx(objectness_loss, rel=1e-5)
    assert losses["rpn_box"].item() == pytest.approx(box_loss, rel=1e-5)


@pytest.mark.parametrize("beta", [1.0, 1 / 9])
def test_region_losses_equal_the_loop(beta):
    generator = seeded(4)
    logits = torch.randn(6, CLASSES + 1, generator=generator) * 2
    deltas = torch.randn(6, CLASSES, 4, generator=generator)
    wanted = torch.randn(3, 4, generator=generator)
    targets = [
        RegionTargets(torch.zeros(4, 4), torch.tensor([2, 0, 3, 3]), wanted[:2]),
        RegionTargets(torch.zeros(2, 4), torch.tensor([1, 3]), wanted[2:]),
    ]
    class_loss, box_loss, start = 0.0, 0.0, 0
    for target in targets:
        count = len(target.labels)
        for place, label in enumerate(target.labels.tolist()):
            row = logits[start + place].double()
            class_loss -= (row[label] - row.exp().sum().log()).item() / count / 2
            if label < CLASSES:
                difference = (deltas[start + place, label] - target.deltas[place]).tolist()
                box_loss += sum(smooth_l1(value, beta) for value in difference) / count / 2
        start += count
    losses = region_losses(logits, deltas, targets, beta)
    assert losses["region_class"].item() == pytest.approx(class_loss, rel=1e-5)
    assert losses["region_box"].item() == pytest.approx(box_loss, rel=1e-5)


def finite_step(network: FasterRCNN, images, boxes, labels, options: StepOptions = STEP) -> dict[str, float]:
    """The losses, after a look at them and at all gradients."""
    network.zero_grad()
    losses = training_losses(network, images, boxes, labels, [(1.0, 1.0)] * len(images), options, seeded())
    assert set(losses) == NAMES
    torch.stack(list(losses.values())).sum().backward()
    assert all(loss.isfinite() and loss.dim() == 0 for loss in losses.values())
    for name, parameter in network.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    return {name: loss.item() for name, loss in losses.items()}


def empty(count: int) -> tuple[list[Tensor], list[Tensor]]:
    return [torch.zeros(0, 4)] * count, [torch.zeros(0, dtype=torch.int64)] * count


def test_a_batch_of_images_without_objects(network):
    images, _, _ = drawn_images(96, 128, CLASSES)
    losses = finite_step(network, images, *empty(2))
    assert losses["rpn_box"] == losses["region_box"] == 0
    assert losses["rpn_objectness"] > 0
    assert losses["region_class"] > 0


def test_a_image_without_objects_beside_one_with(network):
    images, boxes, labels = drawn_images(96, 128, CLASSES)
    losses = finite_step(network, images, [boxes[0], *empty(1)[0]], [labels[0], *empty(1)[1]])
    assert min(losses.values()) > 0


def test_a_image_with_no_anchor_inside(network):
    images, _, _ = drawn_images(28, 30, CLASSES, count=1)
    box, label = torch.tensor([[3.0, 3, 20, 25]]), torch.tensor([1])
    losses = finite_step(network, images, [box], [label])
    assert losses["rpn_objectness"] == losses["rpn_box"] == 0
    assert losses["region_class"] > 0


@pytest.mark.parametrize("with_object", [True, False])
def test_no_proposals_at_all(network, with_object):
    images, boxes, labels = drawn_images(96, 128, CLASSES, count=1)
    options = replace(STEP, proposals=replace(STEP.proposals, min_size=1000))
    boxes, labels = (boxes, labels) if with_object else empty(1)
    losses = finite_step(network, images, boxes, labels, options)
    assert (losses["region_class"] > 0) == with_object, "the objects themselves are regions"
    assert (losses["region_box"] > 0) == with_object


def test_one_class():
    images, boxes, labels = drawn_images(96, 128, 1)
    network = detector_with_spread_scores(small_architecture(), 1, images[0]).train()
    losses = finite_step(network, images, boxes, labels, replace(STEP, num_classes=1))
    assert min(losses.values()) > 0


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "plain18", "vgg16"])
def test_roi_max_pooling_trains(name):
    images, boxes, labels = drawn_images(96, 128, CLASSES)
    architecture = small_architecture(name, width=0.125, pooler="roi_pool")
    network = detector_with_spread_scores(architecture, CLASSES, images[0]).train()
    assert min(finite_step(network, images, boxes, labels).values()) > 0


@torch.no_grad()
def test_a_batch_of_different_sizes_costs_the_mean_of_its_images(network):
    small, large = drawn_images(96, 128, CLASSES, count=1), drawn_images(160, 224, CLASSES)
    images = [small[0][0], large[0][1], large[0][0]]
    boxes = [small[1][0], large[1][1], large[1][0]]
    labels = [small[2][0], large[2][1], large[2][0]]
    alone = []
    for row in range(3):
        (output,) = network([images[row]])
        anchors = sample_anchors(output.anchors, boxes[row], output.size, STEP.anchors, seeded(row))
        regions = sample_regions(
            output.anchors[::17], boxes[row], labels[row], CLASSES, STEP.regions, seeded(row)
        )
        logits, deltas = network.region_head([output.features], [regions.boxes])
        losses = {**rpn_losses([output], [anchors], 1 / 9), **region_losses(logits, deltas, [regions], 1.0)}
        alone.append((anchors, regions, losses))
    outputs = network(images)
    logits, deltas = network.region_head(
        [o.features for o in outputs], [regions.boxes for _, regions, _ in alone]
    )
    together = {
        **rpn_losses(outputs, [anchors for anchors, _, _ in alone], 1 / 9),
        **region_losses(logits, deltas, [regions for _, regions, _ in alone], 1.0),
    }
    for name, loss in together.items():
        mean = sum(losses[name].item() for _, _, losses in alone) / 3
        assert loss.item() == pytest.approx(mean, rel=1e-5), name


def test_the_same_seed_gives_the_same_losses(network):
    images = drawn_images(96, 128, CLASSES)
    options = replace(STEP, regions=replace(STEP.regions, count=4), anchors=replace(STEP.anchors, count=8))
    runs = [training_losses(network, *images, [(1.0, 1.0)] * 2, options, seeded(s)) for s in (5, 5, 6)]
    assert all(runs[0][name].equal(runs[1][name]) for name in NAMES)
    assert runs[0]["rpn_objectness"] != runs[2]["rpn_objectness"]


def test_images_whose_objects_are_not_all_given(network):
    """Truth: overlaps counted in the test: nothing that lies apart from all given objects is a negative."""
    images, boxes, labels = drawn_images(96, 128, CLASSES)
    options = replace(STEP, partial_bg_iou_thresh_lo=0.1, anchors=replace(STEP.anchors, count=4096))
    options = replace(options, regions=replace(STEP.regions, count=4096))
    with torch.no_grad():
        outputs = network(images)
    drawn = [
        draw_targets(outputs, boxes, labels, [(1.0, 1.0)] * 2, options, seeded(), exhaustive)
        for exhaustive in (None, [True, True], [True, False])
    ]
    assert torch.equal(drawn[0][1][0].boxes, drawn[1][1][0].boxes)
    for anchors, regions in (drawn[0], drawn[1]):
        assert least_overlap(outputs[1].anchors[anchors[1].indices], boxes[1]) == 0
        assert len(regions[1].boxes) >= len(drawn[2][1][1].boxes)
    anchors, regions = drawn[2]
    assert least_overlap(outputs[0].anchors[anchors[0].indices], boxes[0]) == 0, "the other picture is whole"
    negatives = anchors[1].indices[anchors[1].positives :]
    assert least_overlap(outputs[1].anchors[negatives], boxes[1]) >= 0.1
    assert least_overlap(regions[1].boxes, boxes[1]) >= 0.1
    none, no_labels = empty(2)
    anchors, regions = draw_targets(
        outputs, none, no_labels, [(1.0, 1.0)] * 2, options, seeded(), [False, True]
    )
    assert len(anchors[0].indices) == len(regions[0].labels) == 0
    assert len(anchors[1].indices) > 0


def least_overlap(references: Tensor, boxes: Tensor) -> float:
    return box_iou(references, boxes).max(dim=1).values.min().item()
