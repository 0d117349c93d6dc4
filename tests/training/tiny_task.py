"""A task that trains in milliseconds: a convolution, batch norm, dropout and samples that depend on the epoch.

As a program it trains in the folder given, so that tests can kill it: `tiny_task.py OUT JSON`, where the JSON object
has the keys of `train` to set, and `resume`, `kill_at` (step) and `terminate_at` (step; the whole group gets the
signal, as from a terminal).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from detres.config import Length
from detres.training.config import TrainConfig
from detres.training.loop import train
from detres.training.run_folder import RunFolder

Batch = tuple[Tensor, Tensor, list[str]]
CPU = torch.device("cpu")
SAMPLES = 7
DEFAULTS = {
    "length": "12 iterations",
    "checkpoint_every": "3 iterations",
    "evaluate_every": "4 iterations",
    "warmup_iterations": 3,
    "milestones": ("9 iterations",),
    "log_every": 5,
    "lr": 0.05,
    "workers": 0,
    "seed": 3,
}


class Samples(Dataset[tuple[Tensor, Tensor, str]]):
    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, str]:
        epoch, index = key
        image = np.random.default_rng((0, epoch, index)).standard_normal((3, 6, 6)).astype(np.float32)
        return torch.from_numpy(image), torch.tensor([float(index % 3), image.mean()]), f"image-{index}.jpg"


def collate(samples: list[tuple[Tensor, Tensor, str]]) -> Batch:
    images, targets, names = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(targets), list(names)


def network(*, batch_norm: bool = True, dropout: float = 0.3) -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4) if batch_norm else nn.Identity()
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(64, 2)
    )


@dataclass
class TinyTask:
    """Tests replace what they look at by assigning to an instance's attributes."""

    network: nn.Module
    dataset: Dataset[tuple[Tensor, Tensor, str]] = field(default_factory=Samples)
    collate: Callable[[list[Any]], Batch] = collate
    best: str = "score"
    lower_is_better: bool = False
    training_error: str | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    evaluates: bool = True

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        images, targets, _ = batch
        error = (self.network(images) - targets).square()
        chosen = torch.rand(error.shape, generator=generator) < 0.7
        return {"near": error[:, 0].mean(), "sampled": (error * chosen).mean()}

    def describe(self, batch: Batch) -> list[str]:
        return batch[2]

    def evaluate(self, network: nn.Module) -> dict[str, float | None]:
        assert not network.training
        torch.rand(3)  # an evaluation may draw numbers: training must not notice
        images, targets, _ = collate([Samples()[0, index] for index in range(SAMPLES)])
        return {"score": -float((network(images) - targets).square().mean()), "none": None}

    def validation_losses(self, network: nn.Module) -> dict[str, float]:
        return {"near": 1.5}

    def export(self, network: nn.Module, path: Path) -> None:
        save_file(dict(network.state_dict()), path)

    def draw_first_batch(self, batch: Batch, folder: Path) -> None:
        pass

    def counts(self) -> dict[str, float]:
        return {}


def task(model: nn.Module, **changes: Any) -> TinyTask:
    made = TinyTask(model)
    for name, value in changes.items():
        assert hasattr(made, name)
        setattr(made, name, value)
    return made


def config(**changes: Any) -> TrainConfig:
    values = DEFAULTS | changes
    for key in ("length", "checkpoint_every", "evaluate_every"):
        values[key] = Length.parse(values[key]) if values[key] else None
    values["milestones"] = tuple(Length.parse(text) for text in values["milestones"])
    return TrainConfig(**values)


def run(
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    made: TinyTask | None = None,
    **changes: Any,
) -> tuple[nn.Module, dict[str, float | None]]:
    """Train a fresh tiny task (or the one given) in `folder`; returns the network and the figures."""
    made = made or TinyTask(network())
    chosen = config(**changes)
    with RunFolder.open(folder, chosen, resume=resume, overwrite=overwrite) as opened:
        return made.network, train(made, chosen, opened, CPU, resume=resume, quiet=True)


def interrupted(made: TinyTask, step: int, act: Any) -> TinyTask:
    """The task whose losses call `act` in the step with this number (from 1; one micro-batch a step)."""
    losses, calls = made.losses, []

    def counted(batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        calls.append(1)
        if len(calls) == step:
            act()
        return losses(batch, generator)

    made.losses = counted
    return made


def main() -> None:
    torch.set_num_threads(1)
    folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    resume = options.pop("resume", False)
    kill_at, terminate_at = options.pop("kill_at", 0), options.pop("terminate_at", 0)
    made = TinyTask(network())
    if kill_at:
        made = interrupted(made, kill_at, lambda: os.kill(os.getpid(), signal.SIGKILL))
    if terminate_at:
        made = interrupted(made, terminate_at, lambda: os.killpg(os.getpgid(0), signal.SIGTERM))
    try:
        run(folder, resume=resume, made=made, **options)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
