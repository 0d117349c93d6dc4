"""One side of a case in a process of its own, as its user would run it: timed there, and its peak memory read.

In its own process no side profits from memory or caches that another has left behind. Beside each sample stands what
other processes used of the CPU, because a busy neighbor doubles times on two threads; it comes from /proc/stat (Linux).
Peak memory is the largest resident set in that process's memory map (/proc's VmHWM: `getrusage` would start from the
parent's); on a GPU it is the largest sum of what PyTorch allocated there.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from benchmarks.cases import Prepare
from detres.devices import tune_malloc

MIB = 2**20
STAT = Path("/proc/stat")
IDLE_COLUMNS = (3, 4)  # idle, iowait
COUNTED_COLUMNS = (
    8  # user, nice, system, idle, iowait, irq, softirq, steal; guests are in user and nice already
)
RESET_PEAK = "5"  # proc(5), /proc/PID/clear_refs
# Seconds; shorter runs are repeated within a sample, because /proc/stat counts in steps of 0.01 s.
SHORTEST_SAMPLE = 0.1


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
    """A form in this process."""

    def __init__(self, prepare: Prepare, device: torch.device) -> None:
        self._device = device
        self._run = prepare().run
        self._repeats: int | None = None
        _forget_peak(device)

    def sample(self) -> Sample:
        if self._repeats is None:
            self._seconds(1)  # cold: longer than those that follow
            self._repeats = max(1, round(SHORTEST_SAMPLE / max(self._seconds(1), 1e-6)))
        before = read_cpu_times()
        seconds = self._seconds(self._repeats)
        return Sample(seconds, other_load(before, read_cpu_times(), os.cpu_count() or 1))

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
        synchronize(self._device)
        begun = time.perf_counter()
        for _ in range(repeats):
            self._run()
        synchronize(self._device)
        return (time.perf_counter() - begun) / repeats


class SideAlone:
    """A form in a process of its own, with as many threads as here.

    Args:
        prepare: Builds the form.
        device: Where it runs.
        keep_memory: Whether the process keeps freed memory (see `devices.tune_malloc`).

    Raises:
        BrokenProcessPool: From any method: the process ended, with its reason on standard error.
    """

    def __init__(self, prepare: Prepare, device: torch.device, keep_memory: bool) -> None:
        self._process = ProcessPoolExecutor(
            1,
            multiprocessing.get_context("spawn"),
            initializer=_build,
            initargs=(prepare, device, torch.get_num_threads(), keep_memory),
        )

    def sample(self) -> Sample:
        return self._process.submit(_sample).result()

    def peak_mib(self) -> float | None:
        return self._process.submit(_peak_mib).result()

    def close(self) -> None:
        self._process.shutdown()


_side: SideHere  # in the process of a side


def _build(prepare: Prepare, device: torch.device, threads: int, keep_memory: bool) -> None:
    global _side
    if keep_memory:
        tune_malloc()
    torch.set_num_threads(threads)
    _side = SideHere(prepare, device)


def _sample() -> Sample:
    return _side.sample()


def _peak_mib() -> float | None:
    return _side.peak_mib()


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget_peak(device: torch.device) -> None:
    """What building took (a peer's twin, an export) is not the peak of running: begin again at what is held now."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):  # not Linux: the peak includes the building
        Path("/proc/self/clear_refs").write_text(RESET_PEAK, encoding="ascii")


@dataclass(frozen=True)
class CpuTimes:
    """Readings of one moment, in seconds.

    Attributes:
        wall: A clock that only goes forward.
        busy: CPU time of all processes on all cores since the machine's start; None where it is not known.
        own: CPU time of this process, all threads, and of its loader workers.
    """

    wall: float
    busy: float | None
    own: float


def read_cpu_times() -> CpuTimes:
    """The readings of now."""
    return CpuTimes(time.perf_counter(), _busy_seconds(), _own_seconds())


def other_load(before: CpuTimes, after: CpuTimes, cores: int) -> float | None:
    """Share of the machine, 0..1, that other processes took between two readings; None where it is not known."""
    if before.busy is None or after.busy is None or after.wall <= before.wall:
        return None
    others = (after.busy - before.busy) - (after.own - before.own)
    return min(max(others / ((after.wall - before.wall) * cores), 0.0), 1.0)


def _busy_seconds() -> float | None:
    try:
        columns = STAT.read_text(encoding="ascii").partition("\n")[0].split()[1 : 1 + COUNTED_COLUMNS]
    except OSError:
        return None
    ticks = [int(column) for column in columns]
    return (sum(ticks) - sum(ticks[column] for column in IDLE_COLUMNS)) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """CPU seconds of this process, of its ended children, and of its running `multiprocessing` children."""
    running = sum(_process_seconds(child.pid) for child in multiprocessing.active_children())
    ended = os.times()
    return time.process_time() + ended.children_user + ended.children_system + running


def _process_seconds(number: int | None) -> float:
    try:
        fields = Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime
