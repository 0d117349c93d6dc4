"""The stream of sample keys that training divides into batches, and the DataLoader over it.

He et al. 2015, §3.4 and Ren et al. 2015, §3.3. A sample depends on (seed, epoch, index) only, so a
run can be resumed at any sample, and the number of workers does not matter.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from detres.errors import DataError

Key = tuple[int, int]


class KeyBatches(Sampler[list[Key]]):
    """Keys (epoch, index) of the batches of steps `start` to `stop`.

    The stream of keys is one permutation of all indices after another, each made from (seed, epoch); step s takes keys
    s * batch to (s + 1) * batch - 1, so that every batch is full and an epoch's remainder goes with the next epoch's
    first keys.

    Args:
        count: Number of samples in the data set.
        batch: Keys of a step.
        seed: Of the permutations.
        start: First step, which is not 0 in a resumed run.
        stop: Step before which to end.
    """

    def __init__(self, count: int, batch: int, *, seed: int, start: int = 0, stop: int):
        if count < 1:
            raise DataError("the training data holds no picture: choose another folder or split")
        self.count, self.batch, self.seed = count, batch, seed
        self.start, self.stop = start, stop

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, order = -1, np.zeros(0, np.int64)
        for step in range(self.start, self.stop):
            keys = []
            for place in range(step * self.batch, (step + 1) * self.batch):
                if place // self.count != epoch:
                    epoch = place // self.count
                    order = np.random.default_rng((self.seed, epoch)).permutation(self.count)
                keys.append((epoch, int(order[place % self.count])))
            yield keys


def make_loader(
    dataset: Dataset[Any],
    batches: Sampler[list[Key]] | Sequence[Sequence[int | Key]],
    collate: Callable[[list[Any]], Any],
    *,
    workers: int = 0,
    start_method: str | None = None,
) -> DataLoader[Any]:
    """A DataLoader over batches of keys that draws nothing from global random generators in any process.

    Args:
        dataset: Samples by key.
        batches: The keys of each batch.
        collate: From a list of samples to a batch.
        workers: Processes that load; 0 loads in this one.
        start_method: `fork`, `spawn` or `forkserver`; None takes the platform's.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=start_worker,
        multiprocessing_context=start_method if workers else None,
        # Without its own generator it would draw the workers' seeds from the global one.
        generator=torch.Generator().manual_seed(0),
    )


def start_worker(worker: int) -> None:
    """Set up a loader process: one thread for OpenCV, and no reaction to signals that are meant for the whole run.

    Workers share the machine's cores, and OpenCV's thread pool hangs in forked processes. The main process handles
    Ctrl-C and SIGTERM: it finishes the step, for which it needs the workers, and ends them. A second SIGTERM ends a
    worker that hangs. torch ends a worker whose parent is gone.
    """
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
    if hasattr(os, "setsid"):
        os.setsid()
    cv2.setNumThreads(0)
