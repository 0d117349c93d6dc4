"""Faster R-CNN as the training loop sees it: losses, evaluation, export.

The same task serves joint training and each stage of alternating training (Ren et al. 2015, §3.2).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from detres.console import progress
from detres.data.batching import make_loader
from detres.data.config import DetectionDataConfig
from detres.data.detection_samples import DetectionDataset, DetectionSample, collate_detection
from detres.data.proposals import Proposals
from detres.detection.config import DetectionConfig, DetectionTestConfig, DetectorArchitecture
from detres.detection.coverage import best_anchor_overlaps, coverage_line
from detres.detection.data import TrainingData, log_training_data
from detres.detection.detect import detect_split
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.features import DetectorMember
from detres.detection.losses import rcnn_losses, rpn_losses, training_losses
from detres.detection.start import start_detector
from detres.detection.visualize import draw_samples, draw_split
from detres.evaluation.coco import evaluate_coco
from detres.evaluation.config import EvaluationConfig
from detres.evaluation.voc import evaluate_voc
from detres.tasks.drawing import draw_first_batch
from detres.tasks.start import Start
from detres.training.feed import plain_errors
from detres.weights.checkpoint import Metadata, save_weights

log = logging.getLogger("detres")

DRAWN_DETECTIONS = 12
COLUMNS = 4

Stage = Literal["joint", "rpn", "rcnn"]


@dataclass(frozen=True)
class DetectorTask:
    """A detector, its data, losses and evaluation (see `training.task.Task`).

    Attributes:
        network: What is trained, on its device.
        architecture: Its options.
        data: Images and boxes.
        data_config: Sizes and augmentation.
        test: How it is evaluated.
        evaluation: The engine of COCO's measure.
        seed: Of augmentation and validation losses.
        workers: Processes that decode validation images.
        init: What the weights were initialized from, for the metadata.
        images: Where validation detections are drawn; None draws none.
        quiet: Show no progress while evaluating.
        stage: Whose losses are minimized: all four, the RPN's, or Fast R-CNN's on given proposals.
        proposals: Of the training images, for the stage `rcnn`.
        evaluates: Whether there is validation data, and this stage has a whole detector to evaluate.
    """

    network: FasterRCNN
    architecture: DetectorArchitecture
    data: TrainingData
    data_config: DetectionDataConfig
    test: DetectionTestConfig
    evaluation: EvaluationConfig
    seed: int
    workers: int
    init: str | None
    images: Path | None
    quiet: bool
    stage: Stage = "joint"
    proposals: Proposals | None = None
    evaluates: bool = True

    best = "AP"
    lower_is_better = False
    training_error: str | None = None

    @property
    def dataset(self) -> DetectionDataset:
        """The training samples, augmented."""
        config = self.data_config
        return DetectionDataset(
            self.data.train,
            config.short_side,
            config.long_side,
            config.augmentation,
            self.seed,
            config.reduced_decoding,
            self.proposals,
        )

    @property
    def collate(self) -> Callable[[list[Any]], list[DetectionSample]]:
        """The batch is the list of samples."""
        return collate_detection

    @property
    def identity(self) -> Mapping[str, Any]:
        """A run cannot be resumed with other classes."""
        return {"class names": list(self.data.train.class_names)}

    def losses(self, batch: Sequence[DetectionSample], generator: torch.Generator) -> dict[str, Tensor]:
        """The stage's loss terms."""
        network, rpn, rcnn = self.network, self.architecture.rpn, self.architecture.rcnn
        samples = [sample.to(network.cell_anchors.device) for sample in batch]
        if self.stage == "joint":
            return training_losses(network, samples, rpn, rcnn, generator)
        images = [sample.image for sample in samples]
        if self.stage == "rpn":
            return rpn_losses(network(images), samples, rpn, rcnn, generator)
        proposals = [sample.proposals for sample in samples if sample.proposals is not None]
        return rcnn_losses(network, network.maps(images), proposals, samples, rcnn, generator)

    def describe(self, batch: Sequence[DetectionSample]) -> list[str]:
        """The images' paths."""
        return [sample.name for sample in batch]

    def evaluate(self, network: FasterRCNN) -> dict[str, float | None]:
        """COCO's figures and VOC's mAP on the validation images; the first images are drawn with their detections."""
        assert self.data.val is not None
        config = self.data_config
        member = DetectorMember(network, self.architecture, config.short_side, config.long_side)
        with plain_errors():
            table, _ = detect_split(
                [member], self.data.val, test=self.test, workers=min(self.workers, 1), quiet=self.quiet
            )
        if self.images is not None:
            draw_split(self.images / "validation.jpg", self.data.val, table, limit=DRAWN_DETECTIONS)
        voc = evaluate_voc(self.data.val, table).figures
        coco = evaluate_coco(self.data.val, table, engine=self.evaluation.engine).figures
        return {**coco, "mAP": voc["mAP"]}

    def validation_losses(self, network: FasterRCNN) -> dict[str, float]:
        """The mean of each loss over the validation images; samples are drawn from the same seed each time."""
        assert self.data.val is not None
        rpn, rcnn, device = self.architecture.rpn, self.architecture.rcnn, network.cell_anchors.device
        dataset = DetectionDataset(self.data.val, self.data_config.short_side, self.data_config.long_side)
        batches = [[index] for index in range(len(dataset))]
        loader = make_loader(dataset, batches, collate_detection, workers=min(self.workers, 1))
        generator = torch.Generator().manual_seed(self.seed)
        terms: dict[str, list[float]] = {}
        with plain_errors():
            for (sample,) in progress(loader, "validation losses", total=len(dataset), quiet=self.quiet):
                losses = training_losses(network, [sample.to(device)], rpn, rcnn, generator)
                for name, loss in losses.items():
                    terms.setdefault(name, []).append(loss.item())
        return {name: float(np.mean(values)) for name, values in terms.items()}

    def export(self, network: FasterRCNN, path: Path) -> None:
        """Write the detector as a weights file."""
        config, train = self.data_config, self.data.train
        metadata = Metadata(
            task="detection",
            architecture=self.architecture.model_dump(mode="json"),
            class_names=train.class_names,
            category_ids=train.category_ids,
            preprocessing=network.preprocessing,
            sizes={"short_side": config.short_side, "long_side": config.long_side},
            test=self.test.model_dump(mode="json", exclude_defaults=True),
            source=f"trained on {train.source} from {self.init or 'random weights'}",
        )
        save_weights(path, network.state_dict(), metadata)

    def draw_first_batch(self, batch: Sequence[DetectionSample], folder: Path) -> None:
        """Draw the samples with their boxes, after resizing and augmentation."""
        draw_first_batch(draw_samples(batch, self.data.train.class_names), folder, COLUMNS)

    def counts(self) -> Mapping[str, float]:
        """Nothing is counted."""
        return {}


def build_detector_task(
    config: DetectionConfig,
    data: TrainingData,
    start: Start,
    device: torch.device,
    *,
    images: Path | None = None,
    quiet: bool = False,
) -> DetectorTask:
    """The detector and its data as the loop sees them; data and anchors are described in the log.

    Args:
        config: The whole configuration, which goes no further than this builder.
        data: From `read_training_data`.
        start: The initial weights, from `read_start`.
        device: Where the network goes.
        images: Where validation detections are drawn; None draws none.
        quiet: Show no progress while evaluating.

    Raises:
        UserError: Initial weights or class names that do not fit.
    """
    architecture = config.architecture(start.network)
    network = start_detector(config.model, architecture, start, data.train.class_names, config.train.seed).to(
        device
    )
    log_training_data(data)
    overlaps = best_anchor_overlaps(
        data.train,
        config.data.short_side,
        config.data.long_side,
        network.cell_anchors.cpu(),
        network.stride,
    )
    log.info(coverage_line(overlaps, config.rpn.fg_iou_thresh))
    return DetectorTask(
        network=network,
        architecture=architecture,
        data=data,
        data_config=config.data,
        test=config.test,
        evaluation=config.evaluation,
        seed=config.train.seed,
        workers=config.train.workers,
        init=config.model.init,
        images=images,
        quiet=quiet,
        evaluates=data.val is not None,
    )
