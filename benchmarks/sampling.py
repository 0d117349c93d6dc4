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
from pathlib import Path
from typing import NamedTuple, Protocol

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


class Sample(NamedTuple):
    """Seconds of one run, and the share of the machine that others used meanwhile (None: not known)."""

    seconds: float
    other_load: float | None


class Sampled(Protocol):
    """A form that runs when it is asked for a sample."""

    def sample(self) -> Sample: ...
    def peak_mib(self) -> float | None: ...
    def close(self) -> None: ...


class SideHere:
    """A form in this process.

    The first sample warms up and finds out how often a sample repeats the run. The peak of memory is that of the
    samples up to now; None where the system does not tell.
    """

    def __init__(self, prepare: Prepare, device: torch.device) -> None:
        self._device = device
        self._run = prepare().run
        self._repeats: int | None = None
        # What building took (a peer's twin, an export) is not the peak of running: begin again at what is held now.
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with contextlib.suppress(OSError):  # not Linux: the peak includes the building
            Path("/proc/self/clear_refs").write_text(RESET_PEAK, encoding="ascii")

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
        peaks = [int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:")]
        return peaks[0] if peaks else None

    def close(self) -> None:
        pass

    def _seconds(self, repeats: int) -> float:
        """Seconds of one run, over `repeats` of them."""
        synchronize(self._device)
        begun = time.perf_counter()
        for _ in range(repeats):
            self._run()
        synchronize(self._device)
        return (time.perf_counter() - begun) / repeats


class SideAlone:
    """A form in a process of its own, with as many threads as here; `keep_memory` as `devices.tune_malloc` does.

    Raises:
        BrokenProcessPool: From any method: the process ended, with its reason on standard error.
    """

    def __init__(self, prepare: Prepare, device: torch.device, keep_memory: bool) -> None:
        given = prepare, device, torch.get_num_threads(), keep_memory
        self._process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _build, given)

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


class CpuTimes(NamedTuple):
    """Seconds read at one moment: a clock; CPU time of all processes on all cores (None: not known); that of ours."""

    wall: float
    busy: float | None
    own: float


def read_cpu_times() -> CpuTimes:
    """The readings of now; ours are this process, all threads, and the loader workers that have ended."""
    ended = os.times()
    own = time.process_time() + ended.children_user + ended.children_system
    try:
        columns = STAT.read_text(encoding="ascii").partition("\n")[0].split()[1 : 1 + COUNTED_COLUMNS]
    except OSError:
        return CpuTimes(time.perf_counter(), None, own)
    ticks = [int(column) for number, column in enumerate(columns) if number not in IDLE_COLUMNS]
    return CpuTimes(time.perf_counter(), sum(ticks) / os.sysconf("SC_CLK_TCK"), own)


def other_load(before: CpuTimes, after: CpuTimes, cores: int) -> float | None:
    """Share of the machine, 0..1, that other processes took between two readings; None where it is not known."""
    if before.busy is None or after.busy is None or after.wall <= before.wall:
        return None
    others = (after.busy - before.busy) - (after.own - before.own)
    return min(max(others / ((after.wall - before.wall) * cores), 0.0), 1.0)
