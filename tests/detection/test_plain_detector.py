"""Everything that makes the detector fast against a plain one: the same equations, one after another, no trick.

Here BN follows its convolution, regions are pooled by torchvision before conv5_1, pictures go through one by one.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from detectors import detector_with_spread_scores, drawn_images, samples_of, small_architecture
from torch import Tensor

from detres.boxes.anchors import grid_anchors
from detres.boxes.coding import decode_boxes
from detres.boxes.geometry import boxes_at_least, clip_boxes
from detres.data.preprocessing import normalize
from detres.detection.config import RCNNConfig, RPNConfig
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.losses import anchor_losses, region_losses, training_losses
from detres.detection.rpn import ImageOutputs
from detres.detection.targets import sample_anchors, sample_regions

CLASSES = 3
RPN = RPNConfig(
    fg_iou_thresh=0.6,
    bg_iou_thresh=0.3,
    batch_size_per_image=64,
    positive_fraction=0.5,
    pre_nms_top_n=1500,
    proposals=100,
    nms_thresh=0.7,
    min_size=4.0,
)
RCNN = RCNNConfig(batch_size_per_image=32, positive_fraction=0.25, fg_iou_thresh=0.5, bg_iou_thresh=0.5)


def plain_norm(norm: Any, maps: Tensor) -> Tensor:
    weight, bias, mean, variance = (
        value[:, None, None] for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    return (maps - mean) / (variance + norm.eps).sqrt() * weight + bias


def plain_block(block: Any, maps: Tensor) -> Tensor:
    residual, count = maps, 3 if hasattr(block, "conv3") else 2
    for number in range(1, count + 1):
        conv = block.get_submodule(f"conv{number}")
        residual = F.conv2d(residual, conv.weight, None, conv.stride, conv.padding)
        residual = plain_norm(block.get_submodule(f"bn{number}"), residual)
        if number < count:
            residual = F.relu(residual)
    if hasattr(block, "downsample"):
        conv, norm = block.downsample
        maps = plain_norm(norm, F.conv2d(maps, conv.weight, None, conv.stride))
    return F.relu(residual + maps)


def plain_outputs(network: FasterRCNN, image: Tensor) -> ImageOutputs:
    trunk: Any = network.trunk
    rpn = network.rpn
    pixels = normalize(image[None], network.preprocessing, torch.float64)
    maps = F.relu(plain_norm(trunk.bn1, F.conv2d(pixels, trunk.conv1.weight, None, 2, 3)))
    maps = F.max_pool2d(maps, 3, 2, 1)
    for stage in (trunk.layer1, trunk.layer2, trunk.layer3):
        for block in stage:
            maps = plain_block(block, maps)
    hidden = F.relu(F.conv2d(maps, rpn.conv.weight, rpn.conv.bias, 1, 1))
    objectness = F.conv2d(hidden, rpn.cls_logits.weight, rpn.cls_logits.bias)[0].permute(1, 2, 0).flatten()
    deltas = F.conv2d(hidden, rpn.bbox_pred.weight, rpn.bbox_pred.bias)[0].permute(1, 2, 0).reshape(-1, 4)
    anchors = grid_anchors(network.cell_anchors, maps.shape[2], maps.shape[3], network.stride)
    return ImageOutputs(maps, objectness, deltas, anchors, (image.shape[1], image.shape[2]))


def plain_proposals(output: ImageOutputs) -> Tensor:
    order = output.objectness.detach().argsort(descending=True, stable=True)[: RPN.pre_nms_top_n]
    boxes = clip_boxes(decode_boxes(output.deltas.detach()[order], output.anchors[order]), *output.size)
    large = boxes_at_least(boxes, RPN.min_size, RPN.min_size)
    boxes, scores = boxes[large], output.objectness.detach()[order][large]
    return boxes[torchvision.ops.nms(boxes, scores, RPN.nms_thresh)[: RPN.proposals]]


def plain_losses(
    network: Any, images: list[Tensor], boxes: list[Tensor], labels: list[Tensor], seed: int
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    outputs = [plain_outputs(network, image) for image in images]
    anchors = [
        sample_anchors(output.anchors, objects, output.size, RPN, generator)
        for output, objects in zip(outputs, boxes, strict=True)
    ]
    regions = [
        sample_regions(plain_proposals(output), objects, of_image, CLASSES, RCNN, generator)
        for output, objects, of_image in zip(outputs, boxes, labels, strict=True)
    ]
    pool: Any = partial(torchvision.ops.roi_align, sampling_ratio=2)
    if network.roi_head.pooler.kind == "roi_pool":
        pool = torchvision.ops.roi_pool
    logits, deltas = [], []
    for output, sampled in zip(outputs, regions, strict=True):
        height, width = output.size
        whole = sampled.boxes.new_tensor([[0, 0, width, height]])
        regions_and_whole = [torch.cat((sampled.boxes, whole))]
        cells = pool(output.features, regions_and_whole, output_size=14, spatial_scale=1 / network.stride)
        for block in network.roi_head.body.layer4:
            cells = plain_block(block, cells)
        features, context = cells.mean(dim=(2, 3)).split([len(sampled.boxes), 1])
        if network.roi_head.global_context:
            features = torch.cat((features, context.expand_as(features)), dim=1)
        logits.append(network.roi_head.box_predictor.cls_score(features))
        deltas.append(network.roi_head.box_predictor.bbox_pred(features).view(len(features), CLASSES, 4))
    return {
        **anchor_losses(outputs, anchors, RPN.smooth_l1_beta),
        **region_losses(torch.cat(logits), torch.cat(deltas), regions, RCNN.smooth_l1_beta),
    }


def detector_and_images(
    name: str, stride_in: str, pooling: str, sizes: tuple[tuple[int, int], ...], context: bool = False
) -> tuple[FasterRCNN, list[Tensor], list[Tensor], list[Tensor]]:
    parts = [drawn_images(*size, CLASSES, count=1) for size in sizes]
    images, boxes, labels = ([image for part in parts for image in part[kind]] for kind in range(3))
    network_config = {"name": name, "width": 0.125, "stride_in": stride_in}
    architecture = small_architecture(
        model={"network": network_config, "pooler": pooling, "global_context": context}
    )
    network = detector_with_spread_scores(architecture, CLASSES, images[0]).double().train()
    return network, images, [objects.double() for objects in boxes], labels


def our_losses(
    network: FasterRCNN, images: list[Tensor], boxes: list[Tensor], labels: list[Tensor], seed: int
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return training_losses(network, samples_of((images, boxes, labels)), RPN, RCNN, generator)


@pytest.mark.parametrize("sizes", [((96, 128), (96, 128)), ((96, 128), (133, 101))], ids=["same", "differ"])
@pytest.mark.parametrize("pooling", ["roi_align", "roi_pool"])
@pytest.mark.parametrize(
    ("name", "stride_in"), [("resnet18", "1x1"), ("resnet50", "1x1"), ("resnet50", "3x3")]
)
def test_losses_and_all_gradients_equal_the_plain_detectors(name, stride_in, pooling, sizes):
    assert_losses_and_gradients_equal(*detector_and_images(name, stride_in, pooling, sizes))


@pytest.mark.parametrize(("name", "pooling"), [("resnet18", "roi_pool"), ("resnet50", "roi_align")])
def test_with_global_context_they_equal_too(name, pooling):
    """The gradient of each trunk weight has a share that came through the whole image's feature."""
    sizes = ((96, 128), (133, 101))
    assert_losses_and_gradients_equal(*detector_and_images(name, "3x3", pooling, sizes, context=True))


def assert_losses_and_gradients_equal(network: FasterRCNN, *images: list[Tensor]) -> None:
    plain = copy.deepcopy(network)
    losses, expected = our_losses(network, *images, seed=1), plain_losses(plain, *images, seed=1)
    for term, loss in losses.items():
        assert loss.item() == pytest.approx(expected[term].item(), rel=1e-8), term
        assert loss.item() > 0
    torch.stack([*losses.values()]).sum().backward()
    torch.stack([*expected.values()]).sum().backward()
    for (parameter, ours), theirs in zip(network.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert (ours.grad - theirs.grad).abs().max() <= 1e-8 * theirs.grad.abs().max(), parameter


def test_50_steps_equal_the_plain_detectors():
    network, *images = detector_and_images("resnet50", "3x3", "roi_align", ((96, 128), (96, 128)))
    curves = []
    for losses_of, trained in ((our_losses, network), (plain_losses, copy.deepcopy(network))):
        sgd = torch.optim.SGD(trained.parameters(), lr=0.002, momentum=0.9)
        curve = []
        for step in range(50):
            loss = torch.stack([*losses_of(trained, *images, seed=step).values()]).sum()
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[0] == pytest.approx(curves[1], rel=1e-7)
    assert curves[0][-1] < 0.7 * curves[0][0]  # and something was learnt
