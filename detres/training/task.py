"""The tie between a task and the loop: what a task's room hands over to be trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

Losses = Callable[[Any, torch.Generator], dict[str, Tensor]]


@dataclass
class Task:
    """The tie between a task and the loop, filled by the task's room.

    Attributes:
        network: What is trained, saved and averaged; on its device, the parameters to train requiring gradients.
        losses: One micro-batch, as `collate` made it, and a generator on the CPU -> named loss terms (scalars),
            whose sum is minimized. It moves the batch to the device; it runs under the loop's autocast.
        dataset: Training samples by key (epoch, index).
        collate: Samples -> micro-batch; a function of a module, so that `spawn`ed workers find it.
        describe: Micro-batch -> names of its images, for messages and dumps.
        best: Name of the figure of `evaluate` by which the best weights are chosen.
        export: Writes the network given (the average, where there is one) as a weights file.
        evaluate: Network in eval mode -> figures (None: does not exist); None: nothing is evaluated.
        validation_losses: Network in eval mode -> loss terms on validation images.
        training_error: Name of a term of `losses` that is measured (logged as train/NAME) and not minimized.
        first_batch: Draws the first micro-batch into the folder given.
        counts: Figures of this process so far that are logged as they are with each line of losses.
        lower_is_better: Whether `best` is an error rather than a score.
        identity: Plain values that must be the same at resume, e.g. class names.
    """

    network: nn.Module
    losses: Losses
    dataset: Dataset[Any]
    collate: Callable[[list[Any]], Any]
    describe: Callable[[Any], list[str]]
    best: str
    export: Callable[[nn.Module, Path], None]
    evaluate: Callable[[nn.Module], Mapping[str, float | None]] | None = None
    validation_losses: Callable[[nn.Module], Mapping[str, float]] | None = None
    training_error: str | None = None
    first_batch: Callable[[Any, Path], None] | None = None
    counts: Callable[[], Mapping[str, float]] | None = None
    lower_is_better: bool = False
    identity: dict[str, Any] = field(default_factory=dict)
