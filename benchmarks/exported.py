"""The detector in other runtimes: ONNX Runtime and OpenVINO, on ONNX files that are written from the composition.

Two graphs of fixed size: trunk with RPN, and RoIAlign with conv5_x and the output layers. What lies between and after
(proposals, suppression) is ours, for it depends on the data; it takes a few milliseconds.
"""

from __future__ import annotations

import importlib
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from benchmarks.cases import Prepared
from benchmarks.detectors import (
    DetectorOptions,
    RawOutputs,
    draw_samples,
    fixed_regions,
    random_detector,
)
from benchmarks.peers.composition import parts_of, torchvision_faster_rcnn
from detres.boxes.anchors import grid_anchors
from detres.data.preprocessing import normalize
from detres.detection.postprocess import (
    Detections,
    decode_predictions,
    postprocess_detections,
    select_candidates,
)
from detres.detection.roi_head import region_predictions
from detres.detection.rpn import ImageOutputs, propose
from detres.networks.resnet import REGION_SIZE

EXPORTED = ("onnxruntime", "openvino")
OPSET = 17  # RoIAlign with its shift as an attribute from 16 on
Graph = Callable[..., list[np.ndarray]]


def prepare_exported(name: str, options: DetectorOptions, low: bool) -> Prepared:
    """The detector of `options` in a runtime.

    Args:
        name: `onnxruntime` or `openvino`.
        options: What is measured; the device is the CPU.
        low: bfloat16 (OpenVINO only).
    """
    network, test = random_detector(options), options.test
    architecture = options.architecture
    samples = draw_samples(options.size, options.batch, "cpu")
    peer = torchvision_faster_rcnn(network, architecture, test)
    with tempfile.TemporaryDirectory() as folder:
        first, second = _write_graphs(peer, options, network.stride, Path(folder))
        trunk, head = _load(name, first, low), _load(name, second, low)

    def run() -> list[Detections]:
        found = []
        for sample in samples:
            pixels = normalize(sample.image[None], network.preprocessing)
            features, objectness, deltas = map(torch.from_numpy, trunk(pixels.numpy()))
            anchors = grid_anchors(network.cell_anchors, features.shape[2], features.shape[3], network.stride)
            outputs = ImageOutputs(features, objectness, deltas, anchors, options.size)
            proposals = propose(outputs, (1.0, 1.0), architecture.rpn, test)
            regions = _filled(F.pad(proposals, (1, 0)), options.proposals)
            logits, class_deltas = map(torch.from_numpy, head(features.numpy(), regions.numpy()))
            count, stds = len(proposals), architecture.rcnn.target_stds
            predictions = region_predictions(logits[:count], class_deltas[:count], stds)
            regions = decode_predictions(predictions, proposals, options.size)
            candidates = select_candidates(regions, test.score_thresh)
            found.append(postprocess_detections(candidates, test.nms_thresh, test.detections_per_img))
        return found

    def raw_outputs() -> RawOutputs:
        parts = []
        regions = F.pad(fixed_regions(options), (1, 0)).numpy()
        for sample in samples:
            features, objectness, _ = trunk(normalize(sample.image[None], network.preprocessing).numpy())
            parts.append([objectness[None], *head(features, regions)])
        return RawOutputs(*(torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True)))

    return Prepared(run, raw_outputs if low else run)


def _filled(regions: Tensor, count: int) -> Tensor:
    """`regions` (R, 5) with zeros up to `count`, for the graph has a fixed number."""
    return torch.cat((regions, torch.zeros(count - len(regions), 5)))


class _TrunkAndRPN(nn.Module):
    """(1, 3, H, W) to the map, and objectness (A h w,) and deltas (A h w, 4) in our order."""

    def __init__(self, peer: Any) -> None:
        super().__init__()
        self.trunk, self.rpn_head = _with_batch_norm(peer.backbone), parts_of(peer)[0].head

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.trunk(pixels)
        objectness, deltas = self.rpn_head([features])
        anchors = objectness[0].shape[1]
        deltas = deltas[0].view(1, anchors, 4, *features.shape[2:]).permute(0, 3, 4, 1, 2)
        return features, objectness[0].permute(0, 2, 3, 1).flatten(), deltas.reshape(-1, 4)


class _RegionHead(nn.Module):
    """The map and regions (R, 5) to class logits (R, K + 1), background last, and deltas (R, K, 4): ours."""

    def __init__(self, peer: Any, sampling_ratio: int, stride: int) -> None:
        super().__init__()
        heads = parts_of(peer)[1]
        self.body, self.predictor = _with_batch_norm(heads.box_head), heads.box_predictor
        self.sampling_ratio, self.scale = sampling_ratio, 1 / stride

    def forward(self, features: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        size = (REGION_SIZE, REGION_SIZE)
        pooled = torchvision.ops.roi_align(features, regions, size, self.scale, self.sampling_ratio)
        logits, deltas = self.predictor(self.body(pooled))
        return torch.cat((logits[:, 1:], logits[:, :1]), dim=1), deltas.view(len(regions), -1, 4)[:, 1:]


def _with_batch_norm(module: nn.Module) -> nn.Module:
    """Torchvision's constant BN as `nn.BatchNorm2d`, in place: exporters know how to fold that one."""
    for name, child in module.named_children():
        if isinstance(child, FrozenBatchNorm2d):
            values = child.state_dict()
            norm = nn.BatchNorm2d(len(values["weight"]), child.eps)
            norm.load_state_dict(values, strict=False)
            setattr(module, name, norm.eval())
        else:
            _with_batch_norm(child)
    return module


def _write_graphs(peer: Any, options: DetectorOptions, stride: int, folder: Path) -> tuple[Path, Path]:
    first = _TrunkAndRPN(peer).eval()
    second = _RegionHead(peer, options.architecture.model.sampling_ratio, stride).eval()
    pixels = torch.zeros(1, 3, *options.size)
    regions = torch.tensor([[0.0, 0.0, 0.0, 32.0, 32.0]]).repeat(options.proposals, 1)
    with torch.no_grad():
        features = first(pixels)[0]
        paths = folder / "trunk_and_rpn.onnx", folder / "region_head.onnx"
        for graph, inputs, path in zip((first, second), ((pixels,), (features, regions)), paths, strict=True):
            _export(graph, inputs, path)
    return paths


def _export(graph: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> None:
    """By the exporter from TorchScript, which needs no further package and folds BN."""
    exporter_log = logging.getLogger("torch.onnx")
    before = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated; constants of fixed sizes
            torch.onnx.export(graph, inputs, str(path), opset_version=OPSET, dynamo=False)
    finally:
        exporter_log.setLevel(before)


def _load(name: str, path: Path, low: bool) -> Graph:
    """A graph in a runtime, as a function of arrays; as many threads as PyTorch has."""
    threads = torch.get_num_threads()
    if name == "onnxruntime":
        onnxruntime = importlib.import_module(name)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            path.read_bytes(), settings, providers=["CPUExecutionProvider"]
        )
        names = [entry.name for entry in session.get_inputs()]
        return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))
    openvino = importlib.import_module(name)
    precision = "bf16" if low else "f32"  # f32 must be asked for: the default is bf16 where the CPU has it
    compiled = openvino.Core().compile_model(
        str(path), "CPU", {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
    )
    return lambda *arrays: [np.array(part) for part in compiled(arrays).values()]
