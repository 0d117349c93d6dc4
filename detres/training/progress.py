"""The progress of training on standard error: a bar on a terminal, elsewhere a plain line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from detres.console import PLAIN_LINE_SECONDS


class StepProgress:
    """Shows losses, images per second, time to go and memory while entered.

    Args:
        done: Iterations already done when the program started.
        total: Iterations of the whole run.
        images_per_step: For the rate.
        device: Whose memory is shown.
        quiet: Show nothing.
    """

    def __init__(self, done: int, total: int, images_per_step: int, device: torch.device, quiet: bool):
        self._first, self._total, self._images_per_step = done, total, images_per_step
        self._device, self._quiet = device, quiet
        self._started = self._shown = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> StepProgress:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._line = self._bar.add_task("", total=self._total, completed=self._first)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A block that may show its own bar, and whose time does not count."""
        begun = time.monotonic()
        if self._bar is not None:
            self._bar.stop()
        yield
        if self._bar is not None:
            self._bar.start()
        self._started += time.monotonic() - begun

    def show(self, step: int, losses: dict[str, float], rate: float) -> None:
        """Show that `step` is done; `losses` are means over the last steps, `rate` the learning rate."""
        now = time.monotonic()
        if self._quiet or (self._bar is None and now - self._shown < PLAIN_LINE_SECONDS):
            return
        self._shown = now
        text = self._text(step, losses, rate, now - self._started)
        if self._bar is not None:
            self._bar.update(self._line, completed=step, description=text)
        else:
            print(f"step {step}/{self._total}: {text}", file=sys.stderr, flush=True)

    def _text(self, step: int, losses: dict[str, float], rate: float, seconds: float) -> str:
        each = seconds / (step - self._first)
        terms = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        return (
            f"{terms}  lr {rate:.2g}  {self._images_per_step / each:.1f} images/s  "
            f"{duration(each * (self._total - step))} to go  {memory_mib(self._device):.0f} MiB"
        )


def memory_mib(device: torch.device) -> float:
    """Memory in MiB: on CUDA the peak of tensors, elsewhere what the process holds (or its peak, without /proc)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/statm")
    if status.exists():
        import resource

        return int(status.read_text().split()[1]) * resource.getpagesize() / 2**20
    return peak_rss_mib()


def peak_rss_mib() -> float:
    """The process's peak memory, in MiB."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def duration(seconds: float) -> str:
    """`1 h 05 min`, `12 min 03 s` or `45 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
