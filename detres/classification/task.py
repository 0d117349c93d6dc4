"""Training a classifier: its data, network, loss, evaluation and weights file, as the training loop uses them.

He et al. 2015, §3.4: softmax cross entropy on random crops of randomly resized images.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detres.classification.classifier import (
    ClassifierArchitecture,
    ClassifierStart,
    start_classifier,
    write_classifier,
)
from detres.classification.config import ClassificationConfig
from detres.classification.data import LeftOut, relabel_images, scan_image_labels
from detres.classification.evaluate import evaluate_classifier, network_input
from detres.classification.mixing import mix, soft_cross_entropy
from detres.classification.pixel_statistics import (
    PixelStatistics,
    pixel_statistics,
    read_mean_image,
    read_pixel_statistics,
    save_pixel_statistics,
)
from detres.data.classification_samples import (
    ClassificationBatch,
    ClassificationDataset,
    collate_classification,
)
from detres.data.preprocessing import Preprocessing
from detres.data.records import ImageLabels, ReadReport
from detres.data.sources import log_reports
from detres.errors import ConfigError, DataError, listed
from detres.networks.resnet import ResNet
from detres.networks.vgg import VGG
from detres.tasks.drawing import draw_first_batch
from detres.tasks.hold_out import hold_out, hold_out_count
from detres.tasks.start import read_start, with_network
from detres.training.loop import Figures, check_training, train
from detres.training.run_folder import RunFolder

log = logging.getLogger("detres")

TRAINING_ERROR = "top1_error"
PIXELS = "pixels.npz"
HOLD_OUT_SEED = 0


@dataclass(frozen=True)
class ClassificationData:
    """What a classifier is trained on, evaluated on while it trains (None: nothing), and what readers dropped."""

    train: ImageLabels
    val: ImageLabels | None
    reports: tuple[ReadReport, ...] = ()


@dataclass(frozen=True)
class ClassifierSetup:
    """All that a training is made of, read and checked before its run folder is opened.

    Attributes:
        config: The configuration, its network completed by the initial weights.
        data: The images.
        start: The network with its initial weights.
    """

    config: ClassificationConfig
    data: ClassificationData
    start: ClassifierStart


def prepare_classifier(config: ClassificationConfig, device: torch.device) -> ClassifierSetup:
    """Read the data and the initial weights that a configuration names, and check that all fits.

    Raises:
        UserError: Data, weights or configuration at fault.
    """
    start = read_start(config.model.network, config.model.init)
    config = with_network(config, start.network)
    data = read_classification_data(config)
    evaluates = data.val is not None
    check_training(config.train, len(data.train), device, evaluates=evaluates, training_error=TRAINING_ERROR)
    classifier = start_classifier(config.model, start, data.train.class_names, config.train.seed)
    if config.data.mean not in (None, "pixel"):
        mean = read_mean_image(config.data.mean, config.data.crop.size)
        classifier = replace(classifier, preprocessing=mean)
    size = config.data.crop.size
    if config.train.batch == 1 and not learns_from_one(classifier.network, size):
        raise ConfigError(
            f"train.batch: 1 image of {size} pixels is one value per channel of the last maps, and BN needs two:"
            " give 2 or more (train.accumulate may be lower then), a larger data.crop.size, or"
            " model.freeze_batch_norm=true"
        )
    return ClassifierSetup(config, data, classifier)


def learns_from_one(network: ResNet | VGG, size: int) -> bool:
    """Whether BN in training mode can normalize one image of `size` pixels: each channel must have two values."""
    trial = copy.deepcopy(network).to("meta").train()
    try:
        trial(torch.empty(1, 3, size, size, device="meta"))
    except ValueError:
        return False
    return True


def read_classification_data(config: ClassificationConfig) -> ClassificationData:
    """Read what `data.train` and `data.val` name, or hold validation images out; nothing is logged yet.

    Raises:
        UserError: The data are at fault, or the classes of `val` are not those of `train`.
    """
    side = config.data.crop.test_side or config.data.crop.size
    images, reports = scan_image_labels(config.data.train, side=side)
    if config.data.val and not config.data.val_count:
        val, more = scan_image_labels(config.data.val, side=side)
        return ClassificationData(images, relabel_images(val, images.class_names), (*reports, *more))
    count = hold_out_count(config.data, len(images))
    return ClassificationData(*hold_out(images, count, HOLD_OUT_SEED), tuple(reports))


def train_classifier(
    setup: ClassifierSetup,
    run: RunFolder,
    device: torch.device,
    *,
    resume: bool = False,
    quiet: bool = False,
) -> Figures:
    """Train a classifier; the best weights are `run.weights`.

    Args:
        setup: From `prepare_classifier`. Its network is trained in place.
        run: The open run folder.
        device: Where to compute.
        resume: Go on from the newest checkpoint of `run`, if it has one.
        quiet: No progress on standard error.

    Returns:
        Figures of the best evaluation (`top1_error`, `top5_error`, `loss/class`), or the last losses without one.

    Raises:
        UserError: An image cannot be read, or the checkpoint does not fit.
        DivergedError: A loss is not finite.
        KeyboardInterrupt: Stopped, after saving.
    """
    data, left_out = setup.data, LeftOut()
    log_reports(data.reports)
    for level, note in setup.start.notes:
        log.log(level, note)
    evaluated = f"evaluated on {len(data.val)} ({data.val.source})" if data.val else "not evaluated"
    log.info("%d images of %d classes, %s", len(data.train), len(data.train.class_names), evaluated)
    statistics = _read_or_compute_statistics(setup, run.path / PIXELS, left_out, quiet=quiet)
    task = build_classifier_task(setup, device, statistics=statistics, left_out=left_out, quiet=quiet)
    return train(task, setup.config.train, run, device, resume=resume, quiet=quiet)


@dataclass
class ClassifierTask:
    """A classifier as the training loop sees it (see `training.task.Task`).

    Attributes:
        network: The classifier, on `device`.
        dataset: Training images.
        val: Images to evaluate on, None for none.
        config: The whole configuration.
        architecture: What rebuilds the network.
        preprocessing: How pixels become its input.
        left_out: Images that cannot be read.
        device: Where to compute.
        quiet: No progress of evaluations.
        learns_from_one: Whether a batch of one image can be trained on.
    """

    network: ResNet | VGG
    dataset: ClassificationDataset
    val: ClassificationDataset | None
    config: ClassificationConfig
    architecture: ClassifierArchitecture
    preprocessing: Preprocessing
    left_out: LeftOut
    device: torch.device
    quiet: bool
    learns_from_one: bool = True

    collate = staticmethod(collate_classification)
    best = "top1_error"
    lower_is_better = True
    training_error = TRAINING_ERROR

    @property
    def class_names(self) -> tuple[str, ...]:
        """The K classes of the training images."""
        return self.dataset.images.class_names

    @property
    def identity(self) -> Mapping[str, Any]:
        """The class names, which a resumed run must have too."""
        return {"class names": list(self.class_names)}

    @property
    def evaluates(self) -> bool:
        """Whether there are validation images."""
        return self.val is not None

    def losses(self, batch: ClassificationBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Softmax cross entropy (`class`), and the training error, which is only measured."""
        self.left_out.add(batch.unreadable)
        if not len(batch):
            raise DataError(f"no image of a batch can be read: {listed(batch.unreadable, 3)}")
        if len(batch) == 1 and not self.learns_from_one:
            self.left_out.add([f"{batch.names[0]} alone of its batch can be read, and BN needs two"])
            return {"class": 0.0 * next(p for p in self.network.parameters() if p.requires_grad).sum()}
        mixing = self.config.data.mixing
        mixed = mix(network_input(batch, self.preprocessing, self.device), mixing, generator)
        labels = batch.labels.to(self.device, non_blocking=True)
        logits = self.network(mixed.inputs.contiguous(memory_format=torch.channels_last))  # (N, K)
        loss = soft_cross_entropy(logits, labels, mixed.partners, mixed.share, mixing.label_smoothing)
        wrong = logits.detach().argmax(dim=1) != labels
        return {"class": loss, TRAINING_ERROR: wrong.float().mean()}

    def describe(self, batch: ClassificationBatch) -> list[str]:
        """The images' paths."""
        return batch.names

    def evaluate(self, network: ResNet | VGG) -> dict[str, float | None]:
        """`top1_error`, `top5_error`, and the mean loss as `loss/class`."""
        assert self.val is not None
        figures = evaluate_classifier(
            network,
            self.preprocessing,
            self.val,
            self.config.test.eval_crops(),
            batch=self.config.test.batch,
            workers=self.config.train.workers,
            device=self.device,
            left_out=self.left_out,
            quiet=self.quiet,
        )
        return {**figures.errors(), "loss/class": figures.loss}

    def validation_losses(self, network: ResNet | VGG) -> dict[str, float]:
        """Empty, because `evaluate` has the loss."""
        return {}

    def export(self, network: ResNet | VGG, path: Path) -> None:
        """Write a weights file."""
        init = self.config.model.init
        write_classifier(
            path,
            network,
            self.architecture,
            class_names=self.class_names,
            preprocessing=self.preprocessing,
            crop=self.config.data.crop,
            source=f"trained on {self.dataset.images.source}" + (f" from {init}" if init else ""),
        )

    def draw_first_batch(self, batch: ClassificationBatch, folder: Path) -> None:
        """Draw the crops with their random colors."""
        shifts = 0.0 if batch.shifts is None else batch.shifts[:, :, None, None]
        crops = (batch.images + shifts).round().clamp(0, 255).to(torch.uint8)
        draw_first_batch(list(crops.permute(0, 2, 3, 1).numpy()), folder)

    def counts(self) -> dict[str, float]:
        """Images left out so far, where unreadable ones are skipped."""
        skip = self.config.data.unreadable == "skip"
        return {"data/left_out": len(self.left_out)} if skip else {}


def build_classifier_task(
    setup: ClassifierSetup,
    device: torch.device,
    *,
    statistics: PixelStatistics | None = None,
    left_out: LeftOut | None = None,
    quiet: bool = False,
) -> ClassifierTask:
    """The task that trains a classifier.

    Args:
        setup: From `prepare_classifier`; the classes of its training images are the network's.
        device: Where to compute.
        statistics: Of the training images, where the configuration asks for them; None: they are computed here.
        left_out: Gets the images that cannot be read; those that it has already are not logged again.
        quiet: No progress of evaluations.
    """
    config, data, start = setup.config, setup.data, setup.start
    crop, skip = config.data.crop, config.data.unreadable == "skip"
    left_out = LeftOut() if left_out is None else left_out
    statistics = statistics or _read_or_compute_statistics(setup, None, left_out, quiet=quiet)
    preprocessing = start.preprocessing
    if statistics is not None and config.data.mean == "pixel":
        preprocessing = statistics.preprocessing()
    colors = statistics.components() if statistics and crop.pca_color else None
    # channels-last: a fifth faster on CPUs, in float32 as in bfloat16 (docs/performance.md)
    start.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return ClassifierTask(
        network=start.network,
        dataset=ClassificationDataset(
            data.train, crop, train=True, seed=config.train.seed, colors=colors, skip_unreadable=skip
        ),
        val=None
        if data.val is None
        else ClassificationDataset(data.val, crop, train=False, skip_unreadable=skip),
        config=config,
        architecture=start.architecture,
        preprocessing=preprocessing,
        left_out=left_out,
        device=device,
        quiet=quiet,
        learns_from_one=not skip or learns_from_one(start.network, crop.size),
    )


def _read_or_compute_statistics(
    setup: ClassifierSetup, path: Path | None, left_out: LeftOut, *, quiet: bool
) -> PixelStatistics | None:
    """Mean and colors of the training images where the configuration asks for them; `path` keeps them for a resume."""
    config = setup.config
    if config.data.mean != "pixel" and not config.data.crop.pca_color:
        return None
    statistics = read_pixel_statistics(path, config.data.crop.size) if path else None
    if statistics is None:
        statistics = pixel_statistics(
            setup.data.train,
            config.data.crop,
            limit=config.data.mean_images,
            workers=config.train.workers,
            skip_unreadable=config.data.unreadable == "skip",
            left_out=left_out,
            quiet=quiet,
        )
        if path:
            save_pixel_statistics(path, statistics)
    return statistics
