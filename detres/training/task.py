"""What the training loop asks of a task: each task implements this protocol in one small class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

Network = TypeVar("Network", bound=nn.Module)
Batch = TypeVar("Batch")


class Task(Protocol[Network, Batch]):
    """A network, its data, its losses and its evaluation, as the training loop uses them."""

    @property
    def network(self) -> Network:
        """What is trained, saved and averaged. It is on its device, and the parameters to train require gradients."""
        ...

    @property
    def dataset(self) -> Dataset[Any]:
        """Training samples by key (epoch, index)."""
        ...

    @property
    def collate(self) -> Callable[[list[Any]], Batch]:
        """Samples -> micro-batch. It is a module-level function, because spawned workers unpickle it by name."""
        ...

    @property
    def best(self) -> str:
        """Name of the figure of `evaluate` that chooses the best weights."""
        ...

    @property
    def lower_is_better(self) -> bool:
        """Whether `best` is an error rather than a score."""
        ...

    @property
    def training_error(self) -> str | None:
        """Name of a term of `losses` that is logged as train/NAME and not minimized; None if there is none."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """Plain values that must be the same when a run is resumed, e.g. class names."""
        ...

    @property
    def evaluates(self) -> bool:
        """Whether there is validation data; without it `evaluate` and `validation_losses` are not called."""
        ...

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Named loss terms (scalars) of a micro-batch; their sum is minimized.

        The method moves the batch to the network's device. It runs under the loop's autocast.

        Args:
            batch: As `collate` made it.
            generator: On the CPU, seeded for this micro-batch.
        """
        ...

    def describe(self, batch: Batch) -> list[str]:
        """Names of the micro-batch's images, for messages and dumps."""
        ...

    def evaluate(self, network: Network) -> Mapping[str, float | None]:
        """Figures of a network in eval mode (the average, if there is one); None: the figure does not exist."""
        ...

    def validation_losses(self, network: Network) -> Mapping[str, float]:
        """Loss terms of a network in eval mode on the validation images; may be empty."""
        ...

    def export(self, network: Network, path: Path) -> None:
        """Write a network as a weights file."""
        ...

    def draw_first_batch(self, batch: Batch, folder: Path) -> None:
        """Draw the run's first micro-batch into `folder`."""
        ...

    def counts(self) -> Mapping[str, float]:
        """Counts of this process so far, logged with each line of losses; may be empty."""
        ...
