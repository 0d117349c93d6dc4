"""Feeds micro-batches to the loop from any step on; worker processes read them ahead."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader

from detres.data.batching import KeyBatches, make_loader
from detres.errors import UserError
from detres.training.config import Plan, TrainConfig
from detres.training.interruption import StopRequest
from detres.training.task import Batch, Task
from detres.training.watch import HungError, Watch

log = logging.getLogger("detres")


def feed(
    task: Task[Any, Batch],
    config: TrainConfig,
    plan: Plan,
    start: int,
    device: torch.device,
    stop: StopRequest,
    watch: Watch,
) -> Generator[tuple[list[Batch], float], None, None]:
    """The micro-batches of each step from `start` to the plan's end, and the seconds that each step waited.

    Where a worker is killed, all are started again at the same step, once.

    Raises:
        UserError: A sample cannot be made; a worker raises the same error as this process.
        WorkerDied: A worker was killed for the second time. It is raised between steps, never within one.
        HungError: No batch came for `train.hang_minutes`.
        Stopped: A signal came while a step's batches were read.
    """
    step, restarted = start, False
    while step < plan.iterations:
        with _same_child_handler():
            batches = iter(_loader(task, config, plan, step, device))
        try:
            for step_fed in _read(batches, config.accumulate, step, plan.iterations, stop, watch):
                yield step_fed
                step += 1
        except WorkerDied as error:
            if restarted or stop.wanted:
                raise
            restarted = True
            log.warning("%s. They are started again, once, at step %d", error, step + 1)
        finally:
            _end_workers(batches)


def _end_workers(batches: Any) -> None:
    """Kill the workers of a loader's iterator, because its own way would wait for one that hangs."""
    if not hasattr(batches, "_workers"):
        return
    with _same_child_handler():
        if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would take this for a failure
        for worker in batches._workers:
            worker.kill()
        batches._shutdown_workers()


def _loader(
    task: Task[Any, Batch], config: TrainConfig, plan: Plan, start: int, device: torch.device
) -> DataLoader[Any]:
    keys = KeyBatches(
        plan.samples,
        config.batch,
        seed=config.seed,
        start=start * config.accumulate,
        stop=plan.iterations * config.accumulate,
    )
    loader = make_loader(task.dataset, keys, task.collate, workers=config.workers, timeout=0)
    loader.pin_memory = device.type == "cuda"
    return loader


def _read(
    batches: Iterator[Batch], accumulate: int, start: int, end: int, stop: StopRequest, watch: Watch
) -> Iterator[tuple[list[Batch], float]]:
    """Steps `start` to `end` as lists of `accumulate` micro-batches."""
    for step in range(start, end):
        begun, micro_batches = time.monotonic(), []
        for _ in range(accumulate):
            waiting = watch.waiting(f"the images of step {step + 1}", whole=True)
            with stop.waiting(), waiting, plain_errors():
                micro_batches.append(next(batches))
        yield micro_batches, time.monotonic() - begun


@contextmanager
def plain_errors() -> Iterator[None]:
    """A block that reads images: for a bad one a worker raises the same error as this process.

    After the block signals are handled as before, whatever handlers a loader installed inside.

    Raises:
        UserError: A sample cannot be made.
        WorkerDied: A worker was killed.
        HungError: A worker gave no batch for `batching.LONGEST_WAIT`.
    """
    try:
        with _same_child_handler():
            yield
    except UserError as error:
        # Without its traceback, which would keep the workers alive until Python collects cycles.
        raise _as_in_worker(error.with_traceback(None)) from None
    except RuntimeError as error:
        if str(error).startswith("DataLoader timed out"):
            raise HungError(
                f"a process that reads images hangs ({error}): look at the file system that they are on, or read with"
                " fewer of them (train.workers, --workers; 0: none)"
            ) from None
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
