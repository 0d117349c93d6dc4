"""A picture's way through a test: trunk, RPN, proposals, regions, scores, boxes, suppression; and what can be added.

He et al. 2015, Appendix A; Appendix B: several scales, refinement, voting, ensembles. Each addition is a switch of
`TestConfig` and a file of its own: `multiscale`, `refinement`, `flip`, `ensemble` and `context`, and `boxes.voting`.

N pictures, R regions, K classes. Boxes come back in pixels of the original picture.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from detres.boxes.coding import TargetStds
from detres.boxes.geometry import scale_boxes
from detres.config import Section
from detres.console import progress
from detres.data.batching import make_loader
from detres.data.records import Annotations, DetectionTable
from detres.detection.ensemble import mean_outputs, union_of_boxes
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.features import Factor, Member, SizedImage, SizedImages, View, look
from detres.detection.refine import refine_boxes
from detres.detection.roi_head import Detections, ScoredRegions, regressed, suppress
from detres.detection.rpn import ProposalOptions
from detres.networks.norm import folded


class TestConfig(Section):
    """How a detector is tested; the keywords of the Python API have the same names."""

    __test__ = False  # not a class of tests, whatever pytest thinks of its name

    score_thresh: float = Field(
        default=0.05, ge=0, lt=1, description="detections must score above this (COCO evaluation may use 0)"
    )
    detections_per_img: int = Field(default=100, ge=1, description="detections kept an image")
    nms_thresh: float = Field(
        default=0.3,
        gt=0,
        le=1,
        description="overlap above which a worse detection of the same class is dropped",
    )
    proposals: int = Field(default=300, ge=1, description="proposals an image: fewer are faster")
    pre_nms_top_n: int = Field(
        default=6000, ge=1, description="best anchors that become boxes before their suppression"
    )
    refine: bool = Field(
        default=False, description="pool and score the regressed boxes again and join both predictions"
    )
    box_voting: bool = Field(
        default=False, description="move kept boxes to the mean, weighted by score, of those around them"
    )
    voting_iou_thresh: float = Field(
        default=0.5, gt=0, lt=1, description="voters overlap a kept box by more than this"
    )
    flip: bool = Field(default=False, description="average over the picture and its mirror image")
    scales: tuple[int, ...] | None = Field(
        default=None,
        description="shorter sides that regions are pooled from, e.g. [200, 400, 600, 800, 1000]; "
        "null: the network's own alone",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="of the convolutions; bfloat16: sooner where processors have it, scores differ in the third digit",
    )

    @field_validator("scales")
    @classmethod
    def _check_scales(cls, scales: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if scales is not None and (not scales or scales[0] < 1 or list(scales) != sorted(set(scales))):
            shown = f"[{', '.join(map(str, scales))}]"
            raise ValueError(f"{shown} should be shorter sides in rising order, such as [400, 600, 800]")
        return scales


def fuse_for_inference(
    network: FasterRCNN, precision: Literal["float32", "bfloat16"] = "float32"
) -> FasterRCNN:
    """A copy for tests alone: frozen BN folded into the convolutions, and these in `precision`, cast once.

    The RPN's 1x1 layers, anchors, box coding, scores and suppression stay in float32.
    """
    network = folded(network).eval()
    if precision == "bfloat16":
        for part in (network.trunk, network.rpn.conv, network.region_head.body):
            part.to(torch.bfloat16)
    return network


@torch.inference_mode()
def detect_images(
    members: Sequence[Member], images: Sequence[Sequence[SizedImage]], test: TestConfig
) -> list[Detections]:
    """Detections of pictures that may differ in size; a batch gives what its pictures give one by one.

    Args:
        members: The network, or the networks of an ensemble.
        images: Each as every member wants it, on the members' device.
        test: Thresholds and switches.

    Returns:
        For each picture its detections, boxes in pixels of the original picture.
    """
    views = [  # [several scales, mirror images]; all boxes from here are in pixels of the first member's input
        look(member, [image[number] for image in images], test.scales, test.flip)
        for number, member in enumerate(members)
    ]
    proposals = _proposals_of_all(views)
    regions = _score(views, proposals)
    if test.refine:
        regions = refine_boxes(regions, partial(_score, views))
    found = []
    for of_image, scale in zip(regions, views[0].scales, strict=True):
        best = suppress(
            of_image.scores,
            of_image.boxes,
            score_thresh=test.score_thresh,
            nms=test.nms_thresh,
            detections_per_img=test.detections_per_img,
            voting_iou_thresh=test.voting_iou_thresh if test.box_voting else None,
        )
        boxes_of_image = scale_boxes(best.boxes, (1 / scale[0], 1 / scale[1]))
        found.append(Detections(boxes_of_image, best.scores, best.labels))
    return found


def _proposals_of_all(views: Sequence[View]) -> list[Tensor]:
    """For each picture the union of all members' proposals (R, 4), in pixels of the first member's input."""
    of_views = [
        [
            scale_boxes(boxes, (1 / factor[0], 1 / factor[1]))
            for boxes, factor in zip(view.proposals(), _factors(views[0], view), strict=True)
        ]
        for view in views
    ]
    return [union_of_boxes(of_image) for of_image in zip(*of_views, strict=True)]


def _score(views: Sequence[View], boxes: Sequence[Tensor]) -> list[ScoredRegions]:
    """For each picture scores and regressed boxes of its regions, the mean over all members.

    Args:
        views: Of each member.
        boxes: For each picture (R, 4) in pixels of the first member's input, as are the regressed ones.
    """
    of_views = [
        view.score(
            [
                scale_boxes(regions, factor)
                for regions, factor in zip(boxes, _factors(views[0], view), strict=True)
            ]
        )
        for view in views
    ]
    return [
        regressed(mean_outputs(of_image), regions, size)
        for of_image, regions, size in zip(zip(*of_views, strict=True), boxes, views[0].sizes, strict=True)
    ]


def _factors(first: View, view: View) -> list[Factor]:
    """For each picture the factor from the first member's input to that of `view`; 1 exactly for the first itself."""
    return [
        (height / first_height, width / first_width)
        for (height, width), (first_height, first_width) in zip(view.sizes, first.sizes, strict=True)
    ]


def detect(
    network: FasterRCNN,
    images: Sequence[Tensor],
    scales: Sequence[Factor],
    proposal_options: ProposalOptions,
    target_stds: TargetStds,
    test: TestConfig,
) -> list[Detections]:
    """`detect_images` of one network and images that are resized already.

    Args:
        network: The detector.
        images: For each image (3, H, W) uint8 RGB, resized to the network's size.
        scales: For each image the (vertical, horizontal) factor from the original picture.
        proposal_options: Proposals an image.
        target_stds: What box offsets were divided by in training.
        test: Thresholds and switches, without `scales`: there is one size.

    Returns:
        For each image its detections, boxes in pixels of the original picture.
    """
    assert test.scales is None
    own = 1  # whatever its size: the only one
    member = Member(network, own, own, proposal_options, target_stds)
    resized = [[SizedImage({own: image}, scale)] for image, scale in zip(images, scales, strict=True)]
    return detect_images([member], resized, test)


def detect_split(
    members: Sequence[Member],
    annotations: Annotations,
    *,
    test: TestConfig,
    workers: int = 0,
    quiet: bool = False,
) -> tuple[DetectionTable, float]:
    """Detections of a whole split, one picture at a time.

    Args:
        members: The network, or those of an ensemble; their modes are left alone, on their own device.
        annotations: The split; only its pictures are used.
        test: Thresholds and switches.
        workers: Processes that load pictures.
        quiet: Show no progress.

    Returns:
        The table, and seconds an image including loading.
    """
    device = members[0].network.cell_anchors.device
    members = [
        replace(member, network=fuse_for_inference(member.network, test.precision)) for member in members
    ]
    sides = [(member.short_side, member.long_side) for member in members]
    dataset = SizedImages(annotations, sides, test.scales)
    loader = make_loader(dataset, [[index] for index in range(len(dataset))], list, workers=workers)
    tables = []
    started = time.perf_counter()
    for ((index, image),) in progress(loader, "detecting", total=len(dataset), quiet=quiet):
        (found,) = detect_images(members, [[sized.to(device) for sized in image]], test)
        tables.append(as_table(found, index))
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
