"""A picture's way through a test: trunk, RPN, proposals, regions, scores, boxes, suppression.

He et al. 2015, Appendix A.

N images, R regions, K classes. Boxes come back in pixels of the original picture.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from detres.boxes.coding import Divisors
from detres.boxes.geometry import scale_boxes
from detres.config import Section
from detres.console import progress
from detres.data.batching import DetectionDataset, collate_detection, make_loader
from detres.data.records import Annotations, DetectionTable
from detres.detection.fast_rcnn import Detections, class_scores_and_boxes, suppress
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.rpn import ProposalOptions, propose
from detres.networks.norm import folded


class TestConfig(Section):
    """How a detector is tested; the keywords of the Python API have the same names."""

    __test__ = False  # not a class of tests, whatever pytest thinks of its name

    min_score: float = Field(
        default=0.05, ge=0, lt=1, description="detections must score above this (COCO evaluation may use 0)"
    )
    max_detections: int = Field(default=100, ge=1, description="detections kept an image")
    nms: float = Field(
        default=0.3,
        gt=0,
        le=1,
        description="overlap above which a worse detection of the same class is dropped",
    )
    proposals: int = Field(default=300, ge=1, description="proposals an image: fewer are faster")
    proposals_before_nms: int = Field(
        default=6000, ge=1, description="best anchors that become boxes before their suppression"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="of the convolutions; bfloat16: sooner where processors have it, scores differ in the third digit",
    )


def for_inference(network: FasterRCNN, precision: Literal["float32", "bfloat16"] = "float32") -> FasterRCNN:
    """A copy for tests alone: frozen BN folded into the convolutions, and these in `precision`, cast once.

    Anchors, box coding, scores and suppression stay in float32.
    """
    network = folded(network).eval()
    if precision == "bfloat16":
        for part in (network.trunk, network.rpn, network.region_head.body):
            part.to(torch.bfloat16)
    return network


@torch.inference_mode()
def detect(
    network: FasterRCNN,
    images: Sequence[Tensor],
    scales: Sequence[tuple[float, float]],
    proposal_options: ProposalOptions,
    box_divisors: Divisors,
    test: TestConfig,
) -> list[Detections]:
    """Detections of images that may differ in size; a batch gives what its images give one by one.

    Args:
        network: The detector.
        images: For each image (3, H, W) uint8 RGB, resized to the network's size.
        scales: For each image the (vertical, horizontal) factor from the original picture.
        proposal_options: Proposals an image.
        box_divisors: What box offsets were divided by in training.
        test: Thresholds.

    Returns:
        For each image its detections, boxes in pixels of the original picture.
    """
    outputs = network(images)
    proposals = [
        propose(output.objectness, output.deltas, output.anchors, output.size, scale, proposal_options)
        for output, scale in zip(outputs, scales, strict=True)
    ]
    logits, deltas = network.region_head([output.features for output in outputs], proposals)
    counts = [len(boxes) for boxes in proposals]
    found = []
    for output, scale, boxes, image_logits, image_deltas in zip(
        outputs, scales, proposals, logits.split(counts), deltas.split(counts), strict=True
    ):
        scores, class_boxes = class_scores_and_boxes(
            image_logits, image_deltas, boxes, output.size, box_divisors
        )
        best = suppress(
            scores, class_boxes, min_score=test.min_score, nms=test.nms, max_detections=test.max_detections
        )
        boxes_of_picture = scale_boxes(best.boxes, (1 / scale[0], 1 / scale[1]))
        found.append(Detections(boxes_of_picture, best.scores, best.labels))
    return found


def detect_split(
    network: FasterRCNN,
    annotations: Annotations,
    *,
    short_side: int,
    long_side: int,
    proposal_options: ProposalOptions,
    box_divisors: Divisors,
    test: TestConfig,
    workers: int = 0,
    quiet: bool = False,
) -> tuple[DetectionTable, float]:
    """Detections of a whole split, one picture at a time.

    Args:
        network: The detector; its mode is left alone, on its own device.
        annotations: The split; only its pictures are used.
        short_side: Pictures are resized to this shorter side.
        long_side: Limit of the longer side.
        proposal_options: Proposals an image.
        box_divisors: What box offsets were divided by in training.
        test: Thresholds.
        workers: Processes that load pictures.
        quiet: Show no progress.

    Returns:
        The table, and seconds an image including loading.
    """
    device = network.cell_anchors.device
    network = for_inference(network, test.precision)
    dataset = DetectionDataset(annotations, short_side, long_side)
    loader = make_loader(
        dataset, [[index] for index in range(len(dataset))], collate_detection, workers=workers
    )
    tables = []
    started = time.perf_counter()
    for (sample,) in progress(loader, "detecting", total=len(dataset), quiet=quiet):
        (found,) = detect(
            network, [sample.image.to(device)], [sample.scale], proposal_options, box_divisors, test
        )
        tables.append(as_table(found, sample.index))
    seconds = (time.perf_counter() - started) / max(len(dataset), 1)
    return DetectionTable.concatenate(tables), seconds


def as_table(found: Detections, index: int) -> DetectionTable:
    """The rows of picture `index` in a table of a split."""
    return DetectionTable(
        images=np.full(len(found.scores), index, dtype=np.int64),
        boxes=found.boxes.cpu().numpy(),
        scores=found.scores.double().cpu().numpy(),
        labels=found.labels.cpu().numpy(),
    )
