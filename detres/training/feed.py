"""Micro-batches for each step, read ahead by worker processes, beginning at any step."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from detres.data.batching import KeyBatches, make_loader
from detres.errors import UserError
from detres.training.config import Plan, TrainConfig
from detres.training.task import Batch, Task


def feed(
    task: Task[Any, Batch], config: TrainConfig, plan: Plan, start: int, device: torch.device
) -> Iterator[tuple[list[Batch], float]]:
    """The micro-batches of each step from `start` to the plan's end, and the seconds that each step waited.

    Raises:
        UserError: A sample cannot be made; the same error whether a worker or this process found it.
        WorkerDied: A worker was killed; between steps, never in the midst of one.
    """
    keys = KeyBatches(
        plan.samples,
        config.batch,
        seed=config.seed,
        start=start * config.accumulate,
        stop=plan.iterations * config.accumulate,
    )
    loader = make_loader(task.dataset, keys, task.collate, workers=config.workers)
    loader.pin_memory = device.type == "cuda"
    with _same_child_handler():
        batches = iter(loader)
    try:
        with plain_errors():
            for _ in range(start, plan.iterations):
                begun = time.monotonic()
                micro_batches = [next(batches) for _ in range(config.accumulate)]
                yield micro_batches, time.monotonic() - begun
    finally:
        del batches


@contextmanager
def plain_errors() -> Iterator[None]:
    """A block that reads images: a bad one is the same error whether a worker or this process found it.

    Signals are handled after it as before, whatever a loader that was started inside has installed.

    Raises:
        UserError: A sample cannot be made.
        WorkerDied: A worker is gone.
    """
    try:
        with _same_child_handler():
            yield
    except UserError as error:
        # Without its traceback, which would hold the workers alive until Python looks for cycles.
        raise _as_in_worker(error.with_traceback(None)) from None
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker "):
            raise
        raise WorkerDied(
            f"a process that reads images was killed, most often because memory ran out ({error}): fewer of them"
            " need less (train.workers, --workers; 0 is none); --resume goes on with a training"
        ) from None


class WorkerDied(UserError):
    """A process that reads images was killed from outside."""


@contextmanager
def _same_child_handler() -> Iterator[None]:
    """A block after which SIGCHLD is handled as before.

    Torch's handler raises the death of a worker wherever the main thread is, such as half-way through a step; without
    it the next batch does.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)


def _as_in_worker(error: UserError) -> UserError:
    """The error as it was raised in a worker: torch puts the worker's traceback in front of its message."""
    text = str(error)
    if not text.startswith("Caught "):
        return error
    return type(error)(text.rpartition(f"{type(error).__name__}: ")[2].strip())
