"""Training the torchvision composition as ours is trained: same loop, batches, schedule, augmentation, initial weights.

What remains different is what the composition cannot be told (see `composition`) and its own random choice of
samples. It has no validation losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN

from benchmarks.peers.calling import (
    peer_detections,
    peer_images,
    same_samples,
    sample_losses,
    sample_targets,
)
from benchmarks.peers.composition import torchvision_faster_rcnn
from detres.boxes.geometry import scale_boxes
from detres.console import progress
from detres.data.detection_samples import DetectionDataset, DetectionSample, collate_detection
from detres.data.records import Annotations, DetectionTable
from detres.detection.config import DetectionConfig, DetectorArchitecture
from detres.detection.data import TrainingData, log_training_data
from detres.detection.detect import as_table
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.losses import training_losses
from detres.detection.postprocess import Detections
from detres.detection.start import start_detector
from detres.errors import ConfigError
from detres.evaluation.coco import evaluate_coco
from detres.evaluation.engines import Engine
from detres.files import atomic_path
from detres.tasks.start import read_start
from detres.training.optimizer import build_optimizer

CPU = torch.device("cpu")


def build_peer(config: DetectionConfig, class_names: Sequence[str]) -> TorchvisionFasterRCNN:
    """The composition with the weights that our detector would start from, in training mode.

    Args:
        config: The whole configuration.
        class_names: K names.

    Raises:
        ConfigError: The training is not joint, or the composition has nothing like what is configured.
    """
    if config.train.mode != "joint":
        raise ConfigError(
            "train.mode: the composition is trained jointly; to compare, --set train.mode=joint"
        )
    network, architecture = _start(config, class_names)
    return torchvision_faster_rcnn(network, architecture, config.test)


@dataclass
class PeerTask:
    """The composition as the training loop sees it (see `training.task.Task`). It has no validation losses.

    Attributes:
        network: The composition, on `device`.
        dataset: Training images.
        data: Training and validation images.
        sizes: Shorter and longer side of the images, in pixels.
        engine: Of COCO's measure.
        device: Where to compute.
        quiet: No progress while evaluating.
    """

    network: TorchvisionFasterRCNN
    dataset: DetectionDataset
    data: TrainingData
    sizes: tuple[int, int]
    engine: Engine
    device: torch.device
    quiet: bool

    collate = staticmethod(collate_detection)
    best = "AP"
    lower_is_better = False
    training_error: str | None = None

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"class names": list(self.data.train.class_names)}

    @property
    def evaluates(self) -> bool:
        return self.data.val is not None

    def losses(self, batch: Sequence[DetectionSample], generator: torch.Generator) -> dict[str, Tensor]:
        """Torchvision draws from the global generator, which the loop seeds for each step; `generator` is unused."""
        return sample_losses(self.network, [sample.to(self.device) for sample in batch], each_scale=True)

    def describe(self, batch: Sequence[DetectionSample]) -> list[str]:
        return [sample.name for sample in batch]

    def evaluate(self, network: TorchvisionFasterRCNN) -> dict[str, float | None]:
        assert self.data.val is not None
        detections = detect_split_with_peer(network, self.data.val, self.sizes, quiet=self.quiet)
        return evaluate_coco(self.data.val, detections, engine=self.engine).figures

    def validation_losses(self, network: TorchvisionFasterRCNN) -> dict[str, float]:
        return {}

    def export(self, network: TorchvisionFasterRCNN, path: Path) -> None:
        """Write a `.safetensors` with torchvision's names."""
        tensors = {name: tensor.contiguous().clone() for name, tensor in network.state_dict().items()}
        with atomic_path(path) as beside:
            save_file(tensors, beside)

    def draw_first_batch(self, batch: Sequence[DetectionSample], folder: Path) -> None:
        pass

    def counts(self) -> dict[str, float]:
        return {}


def build_peer_task(
    config: DetectionConfig,
    data: TrainingData,
    peer: TorchvisionFasterRCNN,
    device: torch.device,
    *,
    quiet: bool = False,
) -> PeerTask:
    """The task that trains the composition.

    Args:
        config: The whole configuration.
        data: Training and validation images.
        peer: From `build_peer`.
        device: Where to train.
        quiet: No progress while evaluating.
    """
    log_training_data(data)
    sizes = config.data.short_side, config.data.long_side
    dataset = _training_dataset(config, data)
    return PeerTask(peer.to(device), dataset, data, sizes, config.evaluation.engine, device, quiet)


def _training_dataset(config: DetectionConfig, data: TrainingData) -> DetectionDataset:
    options, seed = config.data, config.train.seed
    sides = options.short_side, options.long_side
    return DetectionDataset(data.train, *sides, options.augmentation, seed, options.reduced_decoding)


def detect_split_with_peer(
    peer: TorchvisionFasterRCNN, annotations: Annotations, sizes: tuple[int, int], *, quiet: bool = False
) -> DetectionTable:
    """The composition's detections of a split, images resized as for ours, boxes in their own pixels."""
    device = next(peer.parameters()).device
    dataset = DetectionDataset(annotations, *sizes)
    tables = []
    for index in progress(range(len(dataset)), "torchvision detecting", quiet=quiet):
        sample = dataset[index]
        (found,) = peer_detections(peer, peer_images([sample.image.to(device)]), [sample.scale])
        boxes = scale_boxes(found.boxes, (1 / sample.scale[0], 1 / sample.scale[1]))
        tables.append(as_table(Detections(boxes, found.scores, found.labels), index))
    return DetectionTable.concatenate(tables)


def losses_side_by_side(
    config: DetectionConfig, data: TrainingData, steps: int, device: torch.device = CPU
) -> list[tuple[float, float]]:
    """Train ours and the composition for some steps on the same sampled anchors and regions.

    Args:
        config: The whole configuration; `rcnn.smooth_l1_beta` must be 1/9, which the composition has built in.
        data: Training images.
        steps: Number of steps.
        device: Where to compute.

    Returns:
        For each step the sum of the losses of ours and of the composition.
    """
    log_training_data(data)
    ours, architecture = _start(config, data.train.class_names)
    ours.to(device)
    theirs = torchvision_faster_rcnn(ours, architecture, config.test)
    optimizers = [
        build_optimizer(
            network,
            rate=config.train.lr * config.train.warmup_factor,
            momentum=config.train.momentum,
            kind=config.train.optimizer,
            weight_decay=config.train.weight_decay,
            bias_lr_factor=config.train.bias_lr_factor,
            bias_weight_decay=config.train.bias_weight_decay,
        )
        for network in (ours, theirs)
    ]
    dataset = _training_dataset(config, data)
    sums = []
    for step in range(steps):
        places = [(step * config.train.batch + place) % len(dataset) for place in range(config.train.batch)]
        batch = [dataset[place].to(device) for place in places]
        given = ours, batch, architecture.rpn, architecture.rcnn
        targets = sample_targets(*given, torch.Generator().manual_seed(step))
        our_loss = _stepped(optimizers[0], training_losses(*given, torch.Generator().manual_seed(step)))
        with same_samples(theirs, *targets):
            their_losses = sample_losses(theirs, batch, each_scale=True)
        sums.append((our_loss, _stepped(optimizers[1], their_losses)))
    return sums


def _start(config: DetectionConfig, class_names: Sequence[str]) -> tuple[FasterRCNN, DetectorArchitecture]:
    """Our detector as its training starts, and its options."""
    start = read_start(config.model.network, config.model.init)
    architecture = config.architecture(start.network)
    network = start_detector(config.model, architecture, start, class_names, config.train.seed)
    return network.train(), architecture


def _stepped(optimizer: torch.optim.Optimizer, losses: dict[str, Tensor]) -> float:
    """One optimizer step on the sum of the losses, which is returned."""
    total = torch.stack(list(losses.values())).sum()
    optimizer.zero_grad()
    total.backward()
    optimizer.step()
    return total.item()
