"""What other processes use of the CPU while something is measured: a busy neighbor doubles times on two threads.

From /proc/stat (Linux); where it is missing nothing is known, and nothing is dropped.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
IDLE_COLUMNS = (3, 4)  # idle, iowait
COUNTED_COLUMNS = (
    8  # user, nice, system, idle, iowait, irq, softirq, steal; guests are in user and nice already
)


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
    return CpuTimes(time.perf_counter(), _busy(), _own())


def other_load(before: CpuTimes, after: CpuTimes, cores: int) -> float | None:
    """Share of the machine, 0..1, that other processes took between two readings; None where it is not known.

    Args:
        before: The earlier readings.
        after: The later readings.
        cores: Cores of the machine.
    """
    if before.busy is None or after.busy is None or after.wall <= before.wall:
        return None
    others = (after.busy - before.busy) - (after.own - before.own)
    return min(max(others / ((after.wall - before.wall) * cores), 0.0), 1.0)


def cores() -> int:
    """Cores of the machine, as /proc/stat counts them (not only those that this process may use)."""
    return os.cpu_count() or 1


def _busy() -> float | None:
    try:
        columns = STAT.read_text(encoding="ascii").partition("\n")[0].split()[1 : 1 + COUNTED_COLUMNS]
    except OSError:
        return None
    ticks = [int(column) for column in columns]
    return (sum(ticks) - sum(ticks[column] for column in IDLE_COLUMNS)) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    """CPU seconds of this process, of its ended children, and of its running `multiprocessing` children."""
    running = sum(_of_process(child.pid) for child in multiprocessing.active_children())
    ended = os.times()
    return time.process_time() + ended.children_user + ended.children_system + running


def _of_process(number: int | None) -> float:
    try:
        fields = Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime
