"""The four losses against loops in float64, and the cases in which nothing is there to be learnt."""

from __future__ import annotations

import math

import pytest
import torch
from detectors import detector_with_spread_scores, drawn_images, samples_of, small_architecture
from torch import Tensor

from detres.boxes.geometry import box_iou
from detres.detection import losses as losses_module
from detres.detection.config import RCNNConfig, RPNConfig
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.losses import anchor_losses, region_losses, training_losses
from detres.detection.rpn import ImageOutputs
from detres.detection.targets import AnchorTargets, RegionTargets, sample_anchors, sample_regions

CLASSES = 3
RPN = RPNConfig(batch_size_per_image=32, pre_nms_top_n=100, proposals=16, min_size=4)
RCNN = RCNNConfig(batch_size_per_image=8)
NAMES = {"objectness", "rpn_box_reg", "classifier", "box_reg"}


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


def test_anchor_losses_equal_the_loop():
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
    losses = anchor_losses(outputs, targets, beta)
    assert losses["objectness"].item() == pytest.approx(objectness_loss, rel=1e-5)
    assert losses["rpn_box_reg"].item() == pytest.approx(box_loss, rel=1e-5)


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
    assert losses["classifier"].item() == pytest.approx(class_loss, rel=1e-5)
    assert losses["box_reg"].item() == pytest.approx(box_loss, rel=1e-5)


def finite_step(network: FasterRCNN, images, boxes, labels, rpn: RPNConfig = RPN) -> dict[str, float]:
    """The losses, after a look at them and at all gradients."""
    network.zero_grad()
    losses = training_losses(network, samples_of((images, boxes, labels)), rpn, RCNN, seeded())
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
    assert losses["rpn_box_reg"] == losses["box_reg"] == 0
    assert losses["objectness"] > 0
    assert losses["classifier"] > 0


def test_a_image_without_objects_beside_one_with(network):
    images, boxes, labels = drawn_images(96, 128, CLASSES)
    losses = finite_step(network, images, [boxes[0], *empty(1)[0]], [labels[0], *empty(1)[1]])
    assert min(losses.values()) > 0


def test_a_image_with_no_anchor_inside(network):
    images, _, _ = drawn_images(28, 30, CLASSES, count=1)
    box, label = torch.tensor([[3.0, 3, 20, 25]]), torch.tensor([1])
    losses = finite_step(network, images, [box], [label])
    assert losses["objectness"] == losses["rpn_box_reg"] == 0
    assert losses["classifier"] > 0


@pytest.mark.parametrize("with_object", [True, False])
def test_no_proposals_at_all(network, with_object):
    images, boxes, labels = drawn_images(96, 128, CLASSES, count=1)
    boxes, labels = (boxes, labels) if with_object else empty(1)
    losses = finite_step(network, images, boxes, labels, RPN.model_copy(update={"min_size": 1000}))
    assert (losses["classifier"] > 0) == with_object, "the objects themselves are regions"
    assert (losses["box_reg"] > 0) == with_object


def test_one_class():
    images, boxes, labels = drawn_images(96, 128, 1)
    network = detector_with_spread_scores(small_architecture(), 1, images[0]).train()
    losses = finite_step(network, images, boxes, labels)
    assert min(losses.values()) > 0


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "plain18", "vgg16"])
def test_roi_max_pooling_trains(name):
    images, boxes, labels = drawn_images(96, 128, CLASSES)
    architecture = small_architecture(name, width=0.125, model={"pooler": "roi_pool"})
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
        anchors = sample_anchors(output.anchors, boxes[row], output.size, RPN, seeded(row))
        regions = sample_regions(output.anchors[::17], boxes[row], labels[row], CLASSES, RCNN, seeded(row))
        logits, deltas = network.roi_head([output.features], [regions.boxes], [output.size])
        losses = {
            **anchor_losses([output], [anchors], 1 / 9),
            **region_losses(logits, deltas, [regions], 1.0),
        }
        alone.append((anchors, regions, losses))
    outputs = network(images)
    logits, deltas = network.roi_head(
        [o.features for o in outputs], [regions.boxes for _, regions, _ in alone], [o.size for o in outputs]
    )
    together = {
        **anchor_losses(outputs, [anchors for anchors, _, _ in alone], 1 / 9),
        **region_losses(logits, deltas, [regions for _, regions, _ in alone], 1.0),
    }
    for name, loss in together.items():
        mean = sum(losses[name].item() for _, _, losses in alone) / 3
        assert loss.item() == pytest.approx(mean, rel=1e-5), name


def test_the_same_seed_gives_the_same_losses(network):
    samples = samples_of(drawn_images(96, 128, CLASSES))
    rpn = RPN.model_copy(update={"batch_size_per_image": 8})
    rcnn = RCNN.model_copy(update={"batch_size_per_image": 4})
    runs = [training_losses(network, samples, rpn, rcnn, seeded(seed)) for seed in (5, 5, 6)]
    assert all(runs[0][name].equal(runs[1][name]) for name in NAMES)
    assert runs[0]["objectness"] != runs[2]["objectness"]


def test_images_whose_objects_are_not_all_given(network, monkeypatch):
    """Truth: overlaps counted in the test: nothing that lies apart from all given objects is a negative."""
    images, boxes, labels = drawn_images(96, 128, CLASSES)
    rpn = RPN.model_copy(update={"batch_size_per_image": 4096})
    rcnn = RCNN.model_copy(update={"batch_size_per_image": 4096, "partial_bg_iou_thresh_lo": 0.1})
    with torch.no_grad():
        outputs = network(images)

    def sampled_targets(boxes, labels, exhaustive) -> tuple[list[AnchorTargets], list[RegionTargets]]:
        """What a step samples: the functions of `targets` are still called, and their answers kept."""
        kept: dict[str, list] = {"sample_anchors": [], "sample_regions": []}

        def keep(name, function):
            def call(*arguments, **options):
                kept[name].append(function(*arguments, **options))
                return kept[name][-1]

            monkeypatch.setattr(losses_module, name, call)

        keep("sample_anchors", sample_anchors)
        keep("sample_regions", sample_regions)
        samples = samples_of((images, boxes, labels), exhaustive=exhaustive)
        with torch.no_grad():
            training_losses(network, samples, rpn, rcnn, seeded())
        return kept["sample_anchors"], kept["sample_regions"]

    sampled = [
        sampled_targets(boxes, labels, exhaustive) for exhaustive in (None, [True, True], [True, False])
    ]
    assert torch.equal(sampled[0][1][0].boxes, sampled[1][1][0].boxes)
    for anchors, regions in (sampled[0], sampled[1]):
        assert least_overlap(outputs[1].anchors[anchors[1].indices], boxes[1]) == 0
        assert len(regions[1].boxes) >= len(sampled[2][1][1].boxes)
    anchors, regions = sampled[2]
    assert least_overlap(outputs[0].anchors[anchors[0].indices], boxes[0]) == 0, "the other picture is whole"
    negatives = anchors[1].indices[anchors[1].positives :]
    assert least_overlap(outputs[1].anchors[negatives], boxes[1]) >= 0.1
    assert least_overlap(regions[1].boxes, boxes[1]) >= 0.1
    anchors, regions = sampled_targets(*empty(2), [False, True])
    assert len(anchors[0].indices) == len(regions[0].labels) == 0
    assert len(anchors[1].indices) > 0


def least_overlap(references: Tensor, boxes: Tensor) -> float:
    return box_iou(references, boxes).max(dim=1).values.min().item()
