"""Feeds micro-batches to the loop from any step on; worker processes read them ahead."""

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
        UserError: A sample cannot be made; a worker raises the same error as this process.
        WorkerDied: A worker was killed. It is raised between steps, never within one.
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
    """A block that reads images: for a bad one a worker raises the same error as this process.

    After the block signals are handled as before, whatever handlers a loader installed inside.

    Raises:
        UserError: A sample cannot be made.
        WorkerDied: A worker was killed.
    """
    try:
        with _same_child_handler():
            yield
    except UserError as error:
        # Without its traceback, which would keep the workers alive until Python collects cycles.
        raise _as_in_worker(error.with_traceback(None)) from None
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker "):
            raise
        raise WorkerDied(
            f"a process that reads images was killed, most often because memory ran out ({error}): use fewer of them"
            " (train.workers, --workers; 0: none); --resume goes on with a training"
        ) from None


class WorkerDied(UserError):
    """A process that reads images was killed from outside."""


@contextmanager
def _same_child_handler() -> Iterator[None]:
    """A block after which SIGCHLD is handled as before.

    Torch's handler raises the death of a worker wherever the main thread is, e.g. half-way through a step. Without the
    handler the next batch raises it.
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
    """The error as it was raised in a worker, without the traceback that torch puts in front of its message."""
    text = str(error)
    if not text.startswith("Caught "):
        return error
    return type(error)(text.rpartition(f"{type(error).__name__}: ")[2].strip())
