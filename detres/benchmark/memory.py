"""Peak memory of one side of a case, run alone in a process of its own.

The largest resident set of that process's own memory map (/proc's VmHWM: `getrusage` would start from the parent's);
on a GPU the largest sum of what PyTorch allocated there.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from detres.benchmark.cases import Case
from detres.devices import keep_freed_memory

log = logging.getLogger("detres")

MIB = 2**20
CHILD = "from detres.benchmark.memory import main; main()"


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
    """

    cases: Callable[[Any], list[Case]]
    options: Any
    case: str
    side: str
    form: str
    device: str
    threads: int


def peak_mib(request: Request) -> float | None:
    """Peak memory in MiB; None where the system does not tell, or the process failed (as where memory ran out)."""
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=pickle.dumps(request),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        check=False,
    )
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-3:]
        log.warning("%s, %s alone: memory is not known: %s", request.case, request.side, " / ".join(last))
        return None
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """The process: read a request, run it, print its peak."""
    keep_freed_memory()  # as in the process that is timed
    request: Request = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(request.threads)
    run_alone(request)
    print(json.dumps(_own_peak_mib(torch.device(request.device))))


def run_alone(request: Request) -> None:
    """Build the side that is asked for and run it as often as its case says."""
    (case,) = [case for case in request.cases(request.options) if case.name == request.case]
    (side,) = [side for side in case.sides if side.name == request.side]
    (form,) = [form for form in side.forms if form.name == request.form]
    prepared = form.prepare()
    for _ in range(case.memory_runs):
        prepared.run()


def _own_peak_mib(device: torch.device) -> float | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0][1]) / 1024 if lines else None
