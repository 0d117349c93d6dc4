"""Training a detector, jointly or in four alternating steps: what `tools/train_det.py` does, for Python users."""

from __future__ import annotations

from pathlib import Path

import torch

from detres.detection.alternating import check_steps, train_alternating
from detres.detection.config import DetectionConfig
from detres.detection.data import TrainingData, read_training_data
from detres.detection.joint import train_joint
from detres.detection.start import check_pretrained
from detres.detection.task import build_detector_task
from detres.evaluation.engines import select_engine
from detres.tasks.start import Start, read_start
from detres.training.loop import Figures, check_training
from detres.training.run_folder import RunFolder


def read_training(
    config: DetectionConfig, device: torch.device, resumed: Path | None = None
) -> tuple[TrainingData, Start]:
    """Read data and initial weights, and refuse what does not fit, before a run folder is opened.

    Args:
        config: The whole configuration.
        device: Where to train.
        resumed: The run folder to go on in, where there is one.

    Returns:
        The data, and the initial weights.

    Raises:
        UserError: Data, weights, lengths or classes at fault; an engine of COCO's measure that is not installed.
    """
    data = read_training_data(config.data, config.train.seed)
    if data.val is not None:
        select_engine(config.evaluation.engine)
    if config.train.mode == "alternating":
        check_steps(config.train, len(data.train), resumed)
    evaluates = data.val is not None
    check_training(config.train, len(data.train), device, evaluates=evaluates, training_error=None)
    start = read_start(config.model.network, config.model.init)
    check_pretrained(config.model, config.architecture(start.network), start, data.train.class_names)
    return data, start


def train_detector(
    config: DetectionConfig,
    data: TrainingData,
    start: Start,
    run: RunFolder,
    device: torch.device,
    *,
    resume: bool = False,
    quiet: bool = False,
) -> Figures:
    """Train a detector as configured (`train.mode`) and leave weights, checkpoints, metrics and images in `run`.

    Args:
        config: The whole configuration.
        data: From `read_training`.
        start: From `read_training`.
        run: The open run folder.
        device: Where to train.
        resume: Go on from the newest checkpoint.
        quiet: Show no progress.

    Returns:
        The figures of the best evaluation (see `training.loop.train`).

    Raises:
        UserError: Data, weights or configuration at fault.
        DivergedError: A loss is not finite.
    """
    task = build_detector_task(config, data, start, device, images=run.images, quiet=quiet)
    if config.train.mode == "alternating":
        return train_alternating(task, config.train, config.model.freeze_at, run, device, quiet=quiet)
    return train_joint(task, config.train, run, device, resume=resume, quiet=quiet)
