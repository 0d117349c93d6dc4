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
from detres.training.task import Task

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


def collate(samples: list[tuple[Tensor, Tensor, str]]) -> tuple[Tensor, Tensor, list[str]]:
    images, targets, names = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(targets), list(names)


def network(*, batch_norm: bool = True, dropout: float = 0.3) -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4) if batch_norm else nn.Identity()
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(64, 2)
    )


def task(model: nn.Module, **changes: Any) -> Task:
    def losses(batch: tuple[Tensor, Tensor, list[str]], generator: torch.Generator) -> dict[str, Tensor]:
        images, targets, _ = batch
        error = (model(images) - targets).square()
        chosen = torch.rand(error.shape, generator=generator) < 0.7
        return {"near": error[:, 0].mean(), "sampled": (error * chosen).mean()}

    def evaluate(evaluated: nn.Module) -> dict[str, float | None]:
        assert not evaluated.training
        torch.rand(3)  # an evaluation may draw numbers: training must not notice
        images, targets, _ = collate([Samples()[0, index] for index in range(SAMPLES)])
        return {"score": -float((evaluated(images) - targets).square().mean()), "none": None}

    parts: dict[str, Any] = {
        "network": model,
        "losses": losses,
        "dataset": Samples(),
        "collate": collate,
        "describe": lambda batch: batch[2],
        "best": "score",
        "export": lambda module, path: save_file(dict(module.state_dict()), path),
        "evaluate": evaluate,
        "validation_losses": lambda module: {"near": 1.5},
    }
    return Task(**(parts | changes))


def config(**changes: Any) -> TrainConfig:
    values = DEFAULTS | changes
    for key in ("length", "checkpoint_every", "evaluate_every"):
        values[key] = Length.parse(values[key]) if values[key] else None
    values["milestones"] = tuple(Length.parse(text) for text in values["milestones"])
    return TrainConfig(**values)


def run(
    folder: Path, *, resume: bool = False, overwrite: bool = False, made: Task | None = None, **changes: Any
) -> tuple[nn.Module, dict[str, float | None]]:
    """Train a fresh tiny task (or the one given) in `folder`; returns the network and the figures."""
    made = made or task(network())
    chosen = config(**changes)
    with RunFolder.open(folder, chosen, resume=resume, overwrite=overwrite) as opened:
        return made.network, train(made, chosen, opened, CPU, resume=resume, quiet=True)


def interrupted(made: Task, step: int, act: Any) -> Task:
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
    made = task(network())
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
