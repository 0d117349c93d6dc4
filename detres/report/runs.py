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
        UserError: No metrics, or neither key in them; the message has the keys that exist.
    """
    lines = read_metrics(folder / "metrics.jsonl")
    curves = RunCurves(
        train=_average(
            [(line["step"], line[train]) for line in lines if line.get(train) is not None], smooth
        ),
        test=tuple((line["step"], line[test]) for line in lines if line.get(test) is not None),
    )
    if not (curves.train or curves.test):
        keys = sorted({key for line in lines for key in line if "/" in key})
        raise UserError(f"{folder}: no line of metrics.jsonl has {train} or {test}; it has {listed(keys)}")
    return curves


def plot_errors(runs: Mapping[str, RunCurves], path: Path, *, highest: float | None = None) -> None:
    """Plot training errors thin and dashed and test errors bold, in percent over iterations, as in the paper.

    Args:
        runs: From the label of each run to its curves.
        path: The image to write (.png, .svg or .pdf).
        highest: Upper end of the axis in percent; None: as the curves need.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    for place, (label, curves) in enumerate(runs.items()):
        color = f"C{place % 10}"
        legend = label  # one entry in the legend for both curves
        if curves.test:
            steps, errors = zip(*curves.test, strict=True)
            axes.plot(steps, [100 * error for error in errors], color=color, lw=2.2, label=legend)
            legend = "_"
        if curves.train:
            steps, errors = zip(*curves.train, strict=True)
            axes.plot(steps, [100 * error for error in errors], color=color, lw=0.8, ls="--", label=legend)
    axes.set(xlabel="iterations", ylabel="error (%)", ylim=(0, highest), xlim=(0, None))
    axes.set_title("training error thin and dashed, test error bold", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_path(path) as beside:
        figure.savefig(beside, dpi=100)


def _average(points: Sequence[tuple[int, float]], window: int) -> Points:
    """Means over `window` points, at the iteration of the last of them; a shorter rest at the end has its own mean."""
    groups = [points[start : start + window] for start in range(0, len(points), window)]
    return tuple((group[-1][0], sum(error for _, error in group) / len(group)) for group in groups)
