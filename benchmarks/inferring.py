"""Detection in images: ours as `detres.load` gives it, the torchvision composition, exported graphs.

He et al. 2015, Appendix A. An image's whole way is timed, from uint8 pixels in memory to boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec

import torch

from benchmarks.cases import Agreement, Case, Forms, Prepared, autocast, torchvision_layouts, within
from benchmarks.detectors import (
    DetectorOptions,
    RawOutputs,
    build_peer,
    draw_samples,
    fixed_regions,
    random_detector,
)
from benchmarks.exported import EXPORTED, prepare_exported
from benchmarks.peers.calling import peer_detections, peer_images
from benchmarks.peers.composition import parts_of
from detres.boxes.geometry import box_iou
from detres.detection.detect import detect_image, fuse_for_inference
from detres.detection.features import DetectorMember, ResizedImage
from detres.detection.postprocess import Detections
from detres.errors import UserError, listed, nearest

EXPORTED_NOTE = (
    "exported peers run two graphs of fixed size (trunk with RPN; RoIAlign with conv5_x and the output layers);"
    " proposals and the last suppression are ours."
)
RAW_TOLERANCE = 0.1  # of outputs in bfloat16: the root mean square difference, in standard deviations


def infer_cases(options: DetectorOptions, peers: Sequence[str] = ()) -> list[Case]:
    """One case for each precision; seconds an image.

    Args:
        options: What is measured.
        peers: Some of `EXPORTED`, beside torchvision.
    """
    cases = []
    for precision in options.precisions:
        low = precision == "bfloat16"
        exported = [name for name in peers if not (low and name == "onnxruntime")]
        notes = [EXPORTED_NOTE] if exported else []
        notes += (
            ["onnxruntime is left out: it has no bfloat16 on the CPU."] if len(exported) < len(peers) else []
        )
        sides: dict[str, Forms] = torchvision_layouts(partial(_prepare_torchvision, options, low))
        sides |= {name: {"": partial(prepare_exported, name, options, low)} for name in exported}
        cases.append(
            Case(
                name=f"infer {precision}",
                ours=partial(_prepare_ours, options, low),
                peers=sides,
                compare=compare_raw_outputs if low else compare_detections,
                precision=torch.bfloat16 if low else torch.float32,
                units=options.batch,
                note=" ".join(notes),
            )
        )
    return cases


def choose_peers(names: str | None, device: torch.device) -> list[str]:
    """The exported graphs that `--peers` names.

    Raises:
        UserError: A name that is no peer, a package that is not installed, or a device that is not the CPU.
    """
    chosen = [name for name in (names or "").split(",") if name]
    for name in chosen:
        if name not in EXPORTED:
            raise UserError(
                f"--peers {name}: no such peer{nearest(name, EXPORTED)}; they are {listed(EXPORTED)}"
            )
        missing = [package for package in ("onnx", name) if find_spec(package) is None]
        if missing:
            raise UserError(
                f"--peers {name}: not installed: {listed(missing)}; `pip install {' '.join(missing)}`"
            )
    if chosen and device.type != "cpu":
        raise UserError(
            f"--peers on {device}: exported graphs are measured on the CPU only; use --device cpu"
        )
    return chosen


def _prepare_ours(options: DetectorOptions, low: bool) -> Prepared:
    """What `detres.load` makes of the weights: BN folded, convolutions in the precision asked for."""
    network = fuse_for_inference(random_detector(options), "bfloat16" if low else "float32")
    side = min(options.size)
    member = DetectorMember(network, options.architecture, side, max(options.size))
    images = [sample.image for sample in draw_samples(options.size, options.batch, options.device)]

    def run() -> list[Detections]:
        resized = [ResizedImage({side: image}, (1.0, 1.0)) for image in images]
        return [detect_image([member], [image], options.test) for image in resized]

    @torch.inference_mode()
    def raw_outputs() -> RawOutputs:
        outputs = network(images)
        regions = [fixed_regions(options)] * options.batch
        sizes = [output.size for output in outputs]
        logits, deltas = network.roi_head([output.features for output in outputs], regions, sizes)
        return RawOutputs(torch.stack([output.objectness for output in outputs]), logits, deltas)

    return Prepared(run, raw_outputs if low else run)


def _prepare_torchvision(options: DetectorOptions, low: bool, channels_last: bool) -> Prepared:
    peer = build_peer(random_detector(options), options, channels_last)
    inputs = [sample.image for sample in draw_samples(options.size, options.batch, options.device)]

    def run() -> list[Detections]:
        with autocast(options.device, low):
            return peer_detections(peer, peer_images(inputs))

    @torch.inference_mode()
    def raw_outputs() -> RawOutputs:
        rpn, heads = parts_of(peer)
        with autocast(options.device, low):
            images, _ = peer.transform(peer_images(inputs))
            features = peer.backbone(images.tensors)
            objectness = rpn.head([features])[0][0]  # (N, A, h, w)
            regions = [fixed_regions(options)] * options.batch
            pooled = heads.box_roi_pool({"0": features}, regions, images.image_sizes)
            logits, deltas = heads.box_predictor(heads.box_head(pooled))
        return RawOutputs.of_torchvision(objectness, logits, deltas)

    return Prepared(run, raw_outputs if low else run)


def compare_raw_outputs(ours: RawOutputs, theirs: RawOutputs) -> Agreement:
    """What the networks give in bfloat16, on the same regions.

    Not detections: rounding moves scores and boxes of a crowd across the thresholds of suppression. What comes after
    the networks is float32 in every precision, and compared there.

    Returns:
        The largest of the three root mean square differences, in standard deviations of ours.
    """
    pairs = zip(ours, theirs, strict=True)
    differences = [
        float((a.double() - b.double()).square().mean().sqrt() / a.double().std()) for a, b in pairs
    ]
    return within(max(differences), RAW_TOLERANCE, "objectness, logits and deltas, in standard deviations,")


def compare_detections(ours: Sequence[Detections], theirs: Sequence[Detections]) -> Agreement:
    """Pair each detection with one of the same class, place and score; what stays alone is counted.

    Scores to 1e-3, corners to 0.05 px; two, or a thousandth of the detections, may be alone (near-equal scores in
    another order).

    Args:
        ours: For each image.
        theirs: For each image.

    Returns:
        The largest difference of a score, or of a corner in pixels, over the pairs.
    """
    count, alone, difference = 0, 0, 0.0
    for a, b in zip(ours, theirs, strict=True):
        first, second = _pairs(a, b)
        count += len(a.scores) + len(b.scores)
        alone += len(a.scores) + len(b.scores) - 2 * len(first)
        if first:
            scores, corners = a.scores[first] - b.scores[second], a.boxes[first] - b.boxes[second]
            difference = max(difference, float(scores.abs().max()), float(corners.abs().max()))
    if alone > max(2, count / 1000):
        return Agreement(
            difference,
            f"{alone} of {count} detections have no counterpart of the same class, place and score",
        )
    return Agreement(difference)


def _pairs(a: Detections, b: Detections) -> tuple[list[int], list[int]]:
    """Places in `a` and `b` of detections that are the same; each once, best of `a` first."""
    if not len(a.scores) or not len(b.scores):
        return [], []
    overlaps = box_iou(a.boxes, b.boxes)
    alike = (a.labels[:, None] == b.labels) & ((a.scores[:, None] - b.scores).abs() <= 1e-3)
    alike &= (a.boxes[:, None] - b.boxes).abs().amax(dim=2) <= 0.05
    overlaps[~alike] = -1.0
    first, second = [], []
    for row in range(len(a.scores)):
        best = int(overlaps[row].argmax())
        if overlaps[row, best] >= 0:
            first.append(row)
            second.append(best)
            overlaps[:, best] = -1.0
    return first, second
