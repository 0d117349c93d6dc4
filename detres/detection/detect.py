"""One image's way through a test: trunk, RPN, proposals, regions, scores, boxes, suppression; and what can be added.

He et al. 2015, Appendix A; Appendix B: refinement, several scales, ensembles, voting. Each addition is a switch of
`DetectionTestConfig` and a file of its own: `refine`, `tta`, `ensemble`, `context`, `postprocess`.

R regions, K classes. Detections come back in pixels of the original image.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from detres.boxes.geometry import scale_boxes
from detres.console import progress
from detres.data.batching import make_loader
from detres.data.records import Annotations, DetectionTable
from detres.detection.config import DetectionTestConfig
from detres.detection.ensemble import mean_predictions, union_of_boxes
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.features import (
    DetectorMember,
    EvalImages,
    ImageFeatures,
    ResizedImage,
    extract_features,
)
from detres.detection.postprocess import (
    DecodedRegions,
    Detections,
    decode_predictions,
    postprocess_detections,
    select_candidates,
    vote_detections,
)
from detres.detection.refine import refine_boxes
from detres.networks.norm import fold_batch_norm


@torch.inference_mode()
def detect_image(
    members: Sequence[DetectorMember], image: Sequence[ResizedImage], test: DetectionTestConfig
) -> Detections:
    """The detections of one image, boxes in pixels of the original image.

    Args:
        members: The network, or the networks of an ensemble.
        image: As every member takes it, on the members' device.
        test: Thresholds and switches.
    """
    passes = [
        extract_features(member, resized, test.scales, test.flip)
        for member, resized in zip(members, image, strict=True)
    ]
    proposals = union_of_proposals(passes, test)
    predictions = predict_regions(passes, proposals)
    if test.refine:
        predictions = refine_boxes(predictions, partial(predict_regions, passes))
    candidates = select_candidates(predictions, test.score_thresh)
    detections = postprocess_detections(candidates, test.nms_thresh, test.detections_per_img)
    if test.box_voting:
        detections = vote_detections(detections, candidates, test.voting_iou_thresh)
    vertical, horizontal = passes[0].scale
    return replace(detections, boxes=scale_boxes(detections.boxes, (1 / vertical, 1 / horizontal)))


def union_of_proposals(passes: Sequence[ImageFeatures], test: DetectionTestConfig) -> Tensor:
    """The union of all members' proposals (R, 4), in reference pixels."""
    boxes = []
    for features in passes:
        vertical, horizontal = _from_reference(passes[0], features)
        boxes.append(scale_boxes(features.propose(test), (1 / vertical, 1 / horizontal)))
    return union_of_boxes(boxes)


def predict_regions(passes: Sequence[ImageFeatures], regions: Tensor) -> DecodedRegions:
    """Scores and boxes for regions (R, 4), the mean over all members; both in reference pixels."""
    predictions = [
        features.predict(scale_boxes(regions, _from_reference(passes[0], features))) for features in passes
    ]
    return decode_predictions(mean_predictions(predictions), regions, passes[0].size)


def _from_reference(first: ImageFeatures, features: ImageFeatures) -> tuple[float, float]:
    """The factor from the first member's input to this one's; exactly 1 for the first itself."""
    return features.size[0] / first.size[0], features.size[1] / first.size[1]


def fuse_for_inference(
    network: FasterRCNN, precision: Literal["float32", "bfloat16"] = "float32"
) -> FasterRCNN:
    """A copy for tests alone: frozen BN folded into the convolutions, and these in `precision`, cast once.

    The RPN's 1x1 layers, anchors, box coding, scores and suppression stay in float32.
    """
    network = fold_batch_norm(network).eval()
    if precision == "bfloat16":
        for part in (network.trunk, network.rpn.conv, network.roi_head.body):
            part.to(torch.bfloat16)
    return network


def detect_split(
    members: Sequence[DetectorMember],
    annotations: Annotations,
    *,
    test: DetectionTestConfig,
    workers: int = 0,
    quiet: bool = False,
) -> tuple[DetectionTable, float]:
    """Detections of a whole split, one image at a time.

    Args:
        members: The network, or those of an ensemble, on their device; their modes are left alone.
        annotations: The split; only its images are used.
        test: Thresholds and switches.
        workers: Processes that load images.
        quiet: Show no progress.

    Returns:
        The table, and seconds per image including loading.
    """
    device = members[0].network.cell_anchors.device
    members = [
        replace(member, network=fuse_for_inference(member.network, test.precision)) for member in members
    ]
    sides = [(member.short_side, member.long_side) for member in members]
    dataset = EvalImages(annotations, sides, test.scales)
    loader = make_loader(dataset, [[index] for index in range(len(dataset))], list, workers=workers)
    tables = []
    started = time.perf_counter()
    for ((index, image),) in progress(loader, "detecting", total=len(dataset), quiet=quiet):
        detections = detect_image(members, [resized.to(device) for resized in image], test)
        tables.append(as_table(detections, index))
    seconds = (time.perf_counter() - started) / max(len(dataset), 1)
    return DetectionTable.concatenate(tables), seconds


def as_table(detections: Detections, index: int) -> DetectionTable:
    """The rows of image `index` in a table of a split."""
    return DetectionTable(
        images=np.full(len(detections.scores), index, dtype=np.int64),
        boxes=detections.boxes.cpu().numpy(),
        scores=detections.scores.double().cpu().numpy(),
        labels=detections.labels.cpu().numpy(),
    )
