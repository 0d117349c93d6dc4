"""What is shown, and how durations read."""

from __future__ import annotations

import pytest
import torch

from detres.training import progress
from detres.training.progress import StepProgress, duration, memory_mib, peak_rss_mib

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("seconds", "text"), [(44.6, "45 s"), (723, "12 min 03 s"), (59.7, "1 min 00 s"), (3900, "1 h 05 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_plain_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_LINE_SECONDS", 0.0)
    with StepProgress(10, 20, 4, CPU, quiet=False) as shown:
        shown.show(11, {"rpn": 0.5}, 0.01)
    with StepProgress(10, 20, 4, CPU, quiet=True) as shown:
        shown.show(11, {"rpn": 0.5}, 0.01)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    for part in ("step 11/20", "rpn 0.500", "lr 0.01", "images/s", "to go", "MiB"):
        assert part in captured.err


def test_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "150")
    with StepProgress(0, 20, 4, CPU, quiet=False) as shown:
        with shown.paused():
            pass
        shown.show(11, {"rpn": 0.5}, 0.01)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "11/20" in captured.err


def test_memory_is_of_this_process() -> None:
    assert 10 < memory_mib(CPU) <= peak_rss_mib() + 1
