"""Running the cases of a sub-command: ceilings first, then case by case, printed and gathered for `--json`."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.alone import Request, Sampled, SideAlone
from benchmarks.cases import OURS, TORCHVISION, Case, Form, Side
from benchmarks.exported import EXPORTED, missing_packages
from benchmarks.load import STAT, cores
from benchmarks.measuring import measure
from benchmarks.operations import measured_ceiling
from benchmarks.tables import as_json, print_case, print_together, sampling_as_json
from detres.errors import UserError, listed, nearest

log = logging.getLogger("detres")


def measure_cases(
    make: Callable[[Any], list[Case]],
    options: Any,
    *,
    rounds: int,
    device: torch.device,
    together: str = "",
    same_allocator: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure, print a table of each case, and give what `--json` holds.

    Args:
        make: A function of a module that gives the cases for `options`.
        options: Its argument; both are sent to processes of their own.
        rounds: Samples of each side.
        device: Where it runs.
        together: Title of one table for all cases, which then have no peers.
        same_allocator: Peers keep freed memory as our tools do; else they run as PyTorch's defaults have it.
        quiet: No progress.

    Returns:
        `cases` by name (see `tables.as_json`), and `measurement`: machine, threads, ceilings, how the samples lay.

    Raises:
        DisagreementError: A peer's answer is not ours.
    """
    cases = make(options)
    ceilings = {
        precision: measured_ceiling(precision, device)
        for precision in dict.fromkeys(case.precision for case in cases if case.precision)
    }
    print(machine_line(device, ceilings))
    if not STAT.exists():
        print(f"{STAT} is not there: load of other processes is not known, no sample is dropped for it")
    figures, sampling, ours = {}, {}, {}
    for case in cases:

        def start(side: Side, form: Form, case: Case = case) -> Sampled:
            keep = same_allocator or side.name == OURS
            threads = torch.get_num_threads()
            names = case.name, side.name, form.name
            return SideAlone(Request(make, options, *names, str(device), threads, keep))

        ceiling = ceilings[case.precision] if case.precision else None
        results = measure(case, rounds, ceiling=ceiling, start=start, quiet=quiet)
        if not together:
            print_case(case, results)
        ours[case.name] = results[0]
        figures[case.name] = as_json(results)
        sampling[case.name] = sampling_as_json(results)
    if together:
        print_together(together, ours)
    measurement = {
        "machine": platform.platform(),
        "device": device_name(device),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "same_allocator": same_allocator,
        "ceilings": {
            str(precision).removeprefix("torch."): 2 * value for precision, value in ceilings.items()
        },
        "samples": sampling,
    }
    return {"cases": figures, "measurement": measurement}


def machine_line(device: torch.device, ceilings: dict[torch.dtype, float]) -> str:
    """Where it runs, and the ceiling of each precision."""
    reached = ", ".join(
        f"{str(precision).removeprefix('torch.')} {2 * value / 1e9:.0f} GFLOP/s"
        for precision, value in ceilings.items()
    )
    ceiling = f"; ceiling (a large product or convolution): {reached}" if reached else ""
    threads = f"{torch.get_num_threads()} threads of {cores()} cores"
    return f"{device_name(device)}, {threads}, PyTorch {torch.__version__}{ceiling}"


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def chosen_peers(names: Sequence[str], device: torch.device) -> tuple[str, ...]:
    """Torchvision, and those of `names` that are installed here; one line on each that is not.

    Raises:
        UserError: A name that is no peer.
    """
    known = (TORCHVISION, *EXPORTED)
    chosen = [TORCHVISION]
    for name in dict.fromkeys(names):
        if name not in known:
            raise UserError(f"--peers {name}: no such peer{nearest(name, known)}; they are {listed(known)}")
        if name == TORCHVISION:
            continue
        missing = missing_packages(name)
        if missing:
            print(f"{name} is left out: {listed(missing)} not installed (`pip install {' '.join(missing)}`)")
        elif device.type != "cpu":
            print(f"{name} is left out: it is measured on the CPU only")
        else:
            chosen.append(name)
    return tuple(chosen)
