"""Curves of runs, drawn from their metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from detres.errors import UserError
from detres.files import atomic_path


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl.

    Raises:
        UserError: The file is missing or a line is not JSON.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; a run folder holds metrics.jsonl")
    lines = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error.msg}); the file is damaged") from error
    return lines


def plot_curves(metrics: Path, path: Path, *, figures: tuple[str, ...] = ("AP", "AP50")) -> None:
    """Plot the losses of a run over its steps, and its validation figures beside them.

    Args:
        metrics: The run's metrics.jsonl.
        path: The image to write (.png or .svg).
        figures: Validation figures to draw, if the run has them.
    """
    from matplotlib.figure import Figure

    lines = read_metrics(metrics)
    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    names = sorted({name for line in lines for name in line if name == "loss" or name.startswith("loss/")})
    for name in names:
        steps = [line["step"] for line in lines if name in line]
        values = [line[name] for line in lines if name in line]
        losses.plot(
            steps,
            values,
            label=name.removeprefix("loss/") if "/" in name else "sum",
            lw=2 if name == "loss" else 1,
        )
    for name in figures:
        points = [
            (line["step"], line[f"val/{name}"]) for line in lines if line.get(f"val/{name}") is not None
        ]
        if points:
            scores.plot(*zip(*points, strict=True), marker="o", label=name)
    for axes, title in ((losses, "training losses"), (scores, "validation")):
        axes.set(title=title, xlabel="step", ylim=(0, None))
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend()
    with atomic_path(path) as beside:
        figure.savefig(beside, dpi=100)
