"""Curves of training and test error over the iterations of several runs (Figures 1, 4 and 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from detres.errors import UserError, listed
from detres.files import atomic_path
from detres.report.plots import read_metrics

Points = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class RunCurves:
    """Errors of a run, each a tuple of (iteration, error in 0..1).

    Attributes:
        train: On the training crops since the last logged line.
        test: On the validation data.
    """

    train: Points
    test: Points


def read_curves(
    folder: Path, *, train: str = "train/top1_error", test: str = "val/top1_error", smooth: int = 1
) -> RunCurves:
    """The curves of a run folder's metrics.jsonl.

    Args:
        folder: The run folder.
        train: Key of the training error.
        test: Key of the test error.
        smooth: The training error is averaged over this many logged lines.

    Raises:
        UserError: No metrics, or neither key in them: names those that there are.
    """
    lines = read_metrics(folder / "metrics.jsonl")
    curves = RunCurves(
        train=_averaged(
            [(line["step"], line[train]) for line in lines if line.get(train) is not None], smooth
        ),
        test=tuple((line["step"], line[test]) for line in lines if line.get(test) is not None),
    )
    if not (curves.train or curves.test):
        keys = sorted({key for line in lines for key in line if "/" in key})
        raise UserError(f"{folder}: no line of metrics.jsonl has {train} or {test}; it has {listed(keys)}")
    return curves


def plot_errors(runs: Mapping[str, RunCurves], path: Path, *, highest: float | None = None) -> None:
    """Training errors thin and dashed, test errors bold, in percent over iterations, as in the paper.

    Args:
        runs: A label for each run, and its curves.
        path: The picture to write (.png, .svg or .pdf).
        highest: Upper end of the axis, percent; None: what the curves need.
    """
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(8, 6), layout="constrained")
    axes = drawn.subplots()
    for place, (label, curves) in enumerate(runs.items()):
        color = f"C{place % 10}"
        named = label  # one entry in the legend for both curves
        if curves.test:
            steps, errors = zip(*curves.test, strict=True)
            axes.plot(steps, [100 * error for error in errors], color=color, lw=2.2, label=named)
            named = "_"
        if curves.train:
            steps, errors = zip(*curves.train, strict=True)
            axes.plot(steps, [100 * error for error in errors], color=color, lw=0.8, ls="--", label=named)
    axes.set(xlabel="iterations", ylabel="error (%)", ylim=(0, highest), xlim=(0, None))
    axes.set_title("training error thin and dashed, test error bold", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_path(path) as beside:
        drawn.savefig(beside, dpi=100)


def _averaged(points: Sequence[tuple[int, float]], window: int) -> Points:
    """Means over `window` points, each at its last point's iteration; a rest at the end gets a mean of its own."""
    groups = [points[start : start + window] for start in range(0, len(points), window)]
    return tuple((group[-1][0], sum(error for _, error in group) / len(group)) for group in groups)
