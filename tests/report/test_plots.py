"""The curves of one run: its losses and validation figures as metrics.jsonl has them."""

from __future__ import annotations

import json

import pytest

from detres.errors import UserError
from detres.report.plots import plot_curves

LINES = [
    {"step": 10, "loss": 2.0, "loss/rpn_class": 0.5},
    {"step": 20, "loss": 1.5, "loss/rpn_class": 0.4},
    {"step": 20, "val/AP": 0.1, "val/AP50": None},
]


def test_losses_and_figures_are_plotted(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **options: figures.append(self) or save(self, *args, **options)
    )
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    plot_curves(metrics, tmp_path / "curves.png")
    losses, scores = figures[0].axes
    assert {line.get_label(): list(line.get_ydata()) for line in losses.lines} == {
        "sum": [2.0, 1.5],
        "rpn_class": [0.5, 0.4],
    }
    assert {line.get_label(): list(line.get_xdata()) for line in scores.lines} == {"AP": [20]}
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_damaged_metrics_are_told_with_their_line(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1}\n{"step"')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: not JSON"):
        plot_curves(metrics, tmp_path / "curves.png")
