"""One side of a case in a process of its own, as its user would run it: timed there, and its peak memory read.

Apart, no side profits from memory or caches that another has left behind. Peak memory is the largest resident set of
that process's own memory map (/proc's VmHWM: `getrusage` would start from the parent's); on a GPU the largest sum of
what PyTorch allocated there.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks import load
from benchmarks.cases import Case
from detres.devices import tune_malloc

MIB = 2**20
RESET_PEAK = "5"  # proc(5), /proc/PID/clear_refs
SECONDS_TO_END = 10.0  # before a process is ended
SHORTEST_SAMPLE = (
    0.1  # seconds; shorter runs are repeated within a sample (/proc/stat counts in steps of 0.01 s)
)


@dataclass(frozen=True)
class Request:
    """What the process is to run.

    Attributes:
        cases: A function of a module that gives the cases for `options`.
        options: Its argument.
        case: Name of the case.
        side: Name of the side.
        form: Name of the form.
        device: Where it runs.
        threads: Of PyTorch.
        keep_memory: Whether the process keeps freed memory (see `devices.tune_malloc`).
    """

    cases: Callable[[Any], list[Case]]
    options: Any
    case: str
    side: str
    form: str
    device: str
    threads: int
    keep_memory: bool = False


@dataclass(frozen=True)
class Sample:
    """One timed sample: seconds of one run, and the share of the machine that others used (None: not known)."""

    seconds: float
    other_load: float | None


class Sampled(Protocol):
    """A form that runs when it is asked for a sample."""

    def sample(self) -> Sample:
        """Run it; the first time to warm up and to find out how often a sample repeats it."""
        ...

    def peak_mib(self) -> float | None:
        """Peak memory of the samples up to now in MiB; None where the system does not tell."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class SideHere:
    """The form of a request in this process."""

    def __init__(self, request: Request) -> None:
        (case,) = [case for case in request.cases(request.options) if case.name == request.case]
        (side,) = [side for side in case.sides if side.name == request.side]
        (form,) = [form for form in side.forms if form.name == request.form]
        self._device = torch.device(request.device)
        self._run = form.prepare().run
        self._repeats: int | None = None
        _forget_peak(self._device)

    def sample(self) -> Sample:
        if self._repeats is None:
            self._seconds(1)  # cold: longer than those that follow
            self._repeats = max(1, round(SHORTEST_SAMPLE / max(self._seconds(1), 1e-6)))
        before = load.read_cpu_times()
        seconds = self._seconds(self._repeats)
        return Sample(seconds, load.other_load(before, load.read_cpu_times(), load.cores()))

    def peak_mib(self) -> float | None:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / MIB
        try:
            status = Path("/proc/self/status").read_text(encoding="utf-8")
        except OSError:
            return None
        lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(lines[0][1]) / 1024 if lines else None

    def close(self) -> None:
        pass

    def _seconds(self, repeats: int) -> float:
        """Seconds of one run, over `repeats` of them; a GPU is waited for."""
        self._synchronize()
        begun = time.perf_counter()
        for _ in range(repeats):
            self._run()
        self._synchronize()
        return (time.perf_counter() - begun) / repeats

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _forget_peak(device: torch.device) -> None:
    """What building took (a peer's twin, an export) is not the peak of running: begin again at what is held now."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):  # not Linux: the peak includes the building
        Path("/proc/self/clear_refs").write_text(RESET_PEAK, encoding="ascii")


class SideAlone:
    """The form of a request in a process of its own.

    Raises:
        EOFError: From any method: the process ended, with its reason on standard error.
    """

    def __init__(self, request: Request) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, request))
        self._process.start()
        theirs.close()

    def sample(self) -> Sample:
        return self._ask("sample")

    def peak_mib(self) -> float | None:
        return self._ask("peak_mib")

    def close(self) -> None:
        self._connection.close()  # which ends the process
        self._process.join(SECONDS_TO_END)
        self._process.terminate()

    def _ask(self, what: str) -> Any:
        self._connection.send(what)
        return self._connection.recv()


def _serve(connection: Connection, request: Request) -> None:
    """The process: answer what is asked until the connection ends."""
    if request.keep_memory:
        tune_malloc()
    torch.set_num_threads(request.threads)
    side = SideHere(request)
    while True:
        try:
            what = connection.recv()
        except EOFError:
            return
        connection.send(side.sample() if what == "sample" else side.peak_mib())
