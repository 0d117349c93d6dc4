"""The tie between classification and the training loop: data, network, loss, test, weights file.

He et al. 2015, §3.4: softmax cross entropy on random crops of randomly resized pictures.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from detres.classification.classifier import prepare_for_training, write_classifier
from detres.classification.config import ClassificationConfig
from detres.classification.data import LeftOut, hold_out, scan_image_labels, select_classes
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
from detres.errors import DataError, listed
from detres.networks.resnet import ResNet
from detres.networks.vgg import VGG
from detres.training.loop import Figures, Task, train
from detres.training.run_folder import RunFolder

log = logging.getLogger("detres")

TRAINING_ERROR = "top1_error"
PIXELS = "pixels.npz"


def train_classifier(
    config: ClassificationConfig,
    run: RunFolder,
    device: torch.device,
    *,
    data: TrainingImages | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Figures:
    """Train a classifier; the best weights are `run.weights`.

    Args:
        config: The whole configuration.
        run: The open run folder.
        device: Where to compute.
        data: What `config` names, where it has been read before.
        resume: Go on from the newest checkpoint of `run`, if it has one.
        quiet: No progress on standard error.

    Returns:
        Figures of the best evaluation (`top1_error`, `top5_error`, `loss/class`), or the last losses without one.

    Raises:
        UserError: Data, weights or configuration do not fit.
        DivergedError: A loss is not finite.
        KeyboardInterrupt: Stopped, after saving.
    """
    data = data or read_training_images(config)
    log_reports(data.reports)
    evaluated = f"evaluated on {len(data.val)} ({data.val.source})" if data.val else "not evaluated"
    log.info("%d pictures of %d classes, %s", len(data.train), len(data.train.class_names), evaluated)
    left_out = LeftOut()
    statistics = _statistics(config, data.train, run.path / PIXELS, left_out, quiet=quiet)
    task = build_task(
        config, data.train, data.val, device, statistics=statistics, left_out=left_out, quiet=quiet
    )
    return train(task, config.train, run, device, resume=resume, quiet=quiet)


@dataclass(frozen=True)
class TrainingImages:
    """What a classifier is trained on, evaluated on while it trains (None: nothing), and what readers dropped."""

    train: ImageLabels
    val: ImageLabels | None
    reports: tuple[ReadReport, ...]


def read_training_images(config: ClassificationConfig) -> TrainingImages:
    """Read what `data.train` and `data.val` name, or hold out `data.val_count`; nothing is logged yet.

    Raises:
        UserError: Anything wrong with the data; classes of `val` that differ from those of `train`.
    """
    side = config.data.crop.test_side or config.data.crop.size
    images, reports = scan_image_labels(config.data.train, side=side)
    if config.data.val_count:
        return TrainingImages(*hold_out(images, config.data.val_count), tuple(reports))
    if not config.data.val:
        return TrainingImages(images, None, tuple(reports))
    val, more = scan_image_labels(config.data.val, side=side)
    return TrainingImages(images, select_classes(val, images.class_names), (*reports, *more))


def build_task(
    config: ClassificationConfig,
    images: ImageLabels,
    val: ImageLabels | None,
    device: torch.device,
    *,
    statistics: PixelStatistics | None = None,
    left_out: LeftOut | None = None,
    quiet: bool = False,
) -> Task:
    """What the training loop needs to train a classifier.

    Args:
        config: The whole configuration.
        images: Training pictures; their classes are the network's.
        val: Pictures to evaluate on, with the same classes; None: no evaluation.
        device: Where to compute.
        statistics: Of the training pictures, where the configuration asks for them; computed here where None.
        left_out: Gets the pictures that cannot be read; those that it has already are not named again.
        quiet: No progress of evaluations.
    """
    names, crop = images.class_names, config.data.crop
    skip = config.data.unreadable == "skip"
    left_out = LeftOut() if left_out is None else left_out
    network, architecture, preprocessing = prepare_for_training(config.model, names, config.train.seed)
    statistics = statistics or _statistics(config, images, None, left_out, quiet=quiet)
    preprocessing = _preprocessing(config, statistics) or preprocessing
    # channels-last: a fifth faster on CPUs, in float32 as in bfloat16 (docs/performance.md)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def losses(batch: ClassificationBatch, generator: torch.Generator) -> dict[str, Tensor]:
        left_out.add(batch.unreadable)
        if not len(batch):
            raise DataError(f"no picture of a batch can be read: {listed(batch.unreadable, 3)}")
        mixed = mix(network_input(batch, preprocessing, device), config.data.mixing, generator)
        labels = batch.labels.to(device, non_blocking=True)
        logits = network(mixed.inputs.contiguous(memory_format=torch.channels_last))  # (N, K)
        smoothing = config.data.mixing.label_smoothing
        loss = soft_cross_entropy(logits, labels, mixed.partners, mixed.share, smoothing)
        wrong = logits.detach().argmax(dim=1) != labels
        return {"class": loss, TRAINING_ERROR: wrong.float().mean()}

    def evaluate(evaluated: nn.Module) -> Mapping[str, float | None]:
        assert val is not None
        figures = evaluate_classifier(
            evaluated,
            preprocessing,
            ClassificationDataset(val, crop, train=False, skip_unreadable=skip),
            config.test.views(),
            batch=config.test.batch,
            workers=config.train.workers,
            device=device,
            left_out=left_out,
            quiet=quiet,
        )
        return {**figures.errors(), "loss/class": figures.loss}

    def export(exported: nn.Module, path: Path) -> None:
        assert isinstance(exported, (ResNet, VGG))
        write_classifier(
            path,
            exported,
            architecture,
            class_names=names,
            preprocessing=preprocessing,
            crop=crop,
            source=f"trained on {images.source}"
            + (f" from {config.model.init}" if config.model.init else ""),
        )

    return Task(
        network=network,
        losses=losses,
        dataset=ClassificationDataset(
            images,
            crop,
            train=True,
            seed=config.train.seed,
            colors=statistics.components() if statistics and crop.pca_color else None,
            skip_unreadable=skip,
        ),
        collate=collate_classification,
        describe=lambda batch: batch.names,
        best="top1_error",
        lower_is_better=True,
        export=export,
        evaluate=evaluate if val is not None else None,
        training_error=TRAINING_ERROR,
        first_batch=draw_batch,
        counts=(lambda: {"data/left_out": len(left_out)}) if skip else None,
        identity={"classes": list(names)},
    )


def draw_batch(batch: ClassificationBatch, folder: Path) -> None:
    """Draw the crops of a batch, as the network sees them, into `folder/train_batch.jpg`; none where none was read."""
    from detres.data.drawing import contact_sheet, write_image

    if not len(batch):
        return
    shifts = 0.0 if batch.shifts is None else batch.shifts[:, :, None, None]
    images = (batch.images + shifts).round().clamp(0, 255).to(torch.uint8)
    crops = images.permute(0, 2, 3, 1).numpy()  # (N, s, s, 3)
    columns = max(1, round(len(crops) ** 0.5))
    write_image(folder / "train_batch.jpg", contact_sheet(list(crops), columns))


def _statistics(
    config: ClassificationConfig,
    images: ImageLabels,
    path: Path | None,
    left_out: LeftOut,
    *,
    quiet: bool,
) -> PixelStatistics | None:
    """Mean and colors of the training pictures where the configuration asks for them; `path` keeps them for later."""
    if config.data.mean != "pixel" and not config.data.crop.pca_color:
        return None
    statistics = read_pixel_statistics(path, config.data.crop.size) if path else None
    if statistics is None:
        statistics = pixel_statistics(
            images,
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


def _preprocessing(config: ClassificationConfig, statistics: PixelStatistics | None) -> Preprocessing | None:
    """What `data.mean` says; None where it says nothing."""
    if config.data.mean is None:
        return None
    if config.data.mean == "pixel":
        assert statistics is not None
        return statistics.preprocessing()
    return read_mean_image(config.data.mean, config.data.crop.size)
