"""Micro-batches for each step, read ahead by worker processes, beginning at any step."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import torch

from detres.data.batching import KeyBatches, make_loader
from detres.errors import UserError
from detres.training.config import Plan, TrainConfig
from detres.training.task import Task


def feed(
    task: Task, config: TrainConfig, plan: Plan, start: int, device: torch.device
) -> Iterator[tuple[list[Any], float]]:
    """The micro-batches of each step from `start` to the plan's end, and the seconds that each step waited.

    Raises:
        UserError: A sample cannot be made; the same error whether a worker or this process found it.
    """
    keys = KeyBatches(
        plan.samples,
        config.batch,
        seed=config.seed,
        start=start * config.accumulate,
        stop=plan.iterations * config.accumulate,
    )
    loader = make_loader(task.dataset, keys, task.collate, workers=config.workers)
    loader.worker_init_fn = shield_worker
    loader.pin_memory = device.type == "cuda"
    batches = iter(loader)
    try:
        for _ in range(start, plan.iterations):
            begun = time.monotonic()
            micro_batches = [next(batches) for _ in range(config.accumulate)]
            yield micro_batches, time.monotonic() - begun
    except UserError as error:
        # Without its traceback, which would hold the workers alive until Python looks for cycles.
        raise as_in_worker(error.with_traceback(None)) from None
    finally:
        del batches


def shield_worker(worker: int) -> None:
    """Start a worker: one thread, and out of reach of Ctrl-C, since its parent finishes the running step.

    A worker whose parent is gone ends by itself (torch watches for it).
    """
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setsid"):
        os.setsid()
    cv2.setNumThreads(0)


def as_in_worker(error: UserError) -> UserError:
    """The error as it was raised in a worker: torch puts the worker's traceback in front of its message."""
    text = str(error)
    if not text.startswith("Caught "):
        return error
    return type(error)(text.rpartition(f"{type(error).__name__}: ")[2].strip())
