"""Curves of runs: the points are those of metrics.jsonl, and drawn as the paper draws them."""

from __future__ import annotations

import json

import pytest

from detres.errors import UserError
from detres.report.runs import RunCurves, plot_errors, read_curves


def write_run(folder, lines):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


LINES = [
    {"step": 10, "loss": 2.0, "train/top1_error": 0.8},
    {"step": 20, "loss": 1.5, "train/top1_error": 0.6},
    {"step": 20, "val/top1_error": 0.7},
    {"step": 30, "loss": 1.0, "train/top1_error": None},
    {"step": 40, "loss": 1.0, "train/top1_error": 0.3},
    {"step": 40, "val/top1_error": 0.5},
]


def test_curves_are_the_lines_of_the_run(tmp_path):
    run = write_run(tmp_path / "run", LINES)
    curves = read_curves(run)
    assert curves == RunCurves(train=((10, 0.8), (20, 0.6), (40, 0.3)), test=((20, 0.7), (40, 0.5)))
    smooth = read_curves(run, smooth=2).train
    assert [step for step, _ in smooth] == [20, 40]
    assert [error for _, error in smooth] == pytest.approx([0.7, 0.3])


def test_run_without_errors_is_refused_with_its_keys(tmp_path):
    run = write_run(tmp_path / "run", [{"step": 1, "loss/class": 1.0, "val/AP": 0.3}])
    with pytest.raises(
        UserError, match=r"no line of metrics.jsonl has train/top1_error or .*loss/class, val/AP"
    ):
        read_curves(run)
    assert read_curves(run, train="loss/class", test="val/AP").test == ((1, 0.3),)
    with pytest.raises(UserError, match="no such file; a run folder holds"):
        read_curves(tmp_path / "nowhere")


def test_drawing_is_the_paper_s(tmp_path, monkeypatch):
    """Thin and dashed for training, bold for test, one color a run, one entry of the legend each; percent."""
    from matplotlib.figure import Figure

    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kinds: drawn.append(self) or save(self, *args, **kinds)
    )
    curves = read_curves(write_run(tmp_path / "a", LINES))
    only_training = RunCurves(train=((10, 0.9),), test=())
    plot_errors({"plain": curves, "other": only_training}, tmp_path / "out.png", highest=80)
    (axes,) = drawn[0].axes
    test, train, other = axes.lines
    assert list(test.get_ydata()) == [70, 50]
    assert list(train.get_xdata()) == [10, 20, 40]
    assert test.get_linewidth() > 2 > train.get_linewidth()
    assert (test.get_linestyle(), train.get_linestyle()) == ("-", "--")
    assert test.get_color() == train.get_color() != other.get_color()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["plain", "other"]
    assert axes.get_ylim() == (0, 80)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
