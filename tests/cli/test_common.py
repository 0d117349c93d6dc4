"""Exit statuses and one-line errors, against the documented list; common options; `detres NAME`."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from detres import cli
from detres.cli.common import add_common_arguments, run, tool_parser, write_report
from detres.errors import DivergedError, UserError


@pytest.fixture(autouse=True)
def _unchanged_process() -> Iterator[None]:
    """Take back the log on standard error, which `run` sets for a whole program."""
    log = logging.getLogger("detres")
    handlers, level = list(log.handlers), log.level
    yield
    log.handlers[:] = handlers
    log.setLevel(level)


def ended(capsys: pytest.CaptureFixture[str], main, argv: tuple[str, ...] = ()) -> tuple[object, str]:
    """Exit status and standard error of a tool."""
    with pytest.raises(SystemExit) as caught:
        run(main, argv)
    return caught.value.code, capsys.readouterr().err


def failing(error: BaseException):
    def main(argv: list[str]) -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("a.yaml:3: wrong"), 2, "error: a.yaml:3: wrong\n"),
        (DivergedError("loss is nan"), 3, "error: loss is nan\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x"),
            2,
            "error: no space left on the device for runs/x: free some or choose another folder\n",
        ),
        (
            ModuleNotFoundError("No module named 'jinja2'", name="jinja2"),
            2,
            "error: the package 'jinja2' is not installed: run `pip install -e .`\n",
        ),
    ],
)
def test_status_and_one_line(capsys, error: BaseException, status: int, message: str):
    assert ended(capsys, failing(error)) == (status, message)


@pytest.mark.parametrize(
    "error", [ValueError("odd"), OSError(errno.EIO, "Input/output error"), AssertionError()]
)
def test_a_bug_shows_its_traceback(capsys, error: Exception):
    status, printed = ended(capsys, failing(error))
    assert status == 1
    assert printed.startswith("Traceback")


def test_out_of_gpu_memory_is_one_line(capsys):
    class OutOfMemoryError(RuntimeError):
        """Stands for torch's."""

    status, printed = ended(capsys, failing(OutOfMemoryError("CUDA out of memory. Tried to allocate")))
    assert status == 2
    assert printed.startswith("error: the GPU is out of memory: ")


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (7, 7)])
def test_what_a_tool_returns_is_the_status(capsys, returned: int | None, status: int):
    assert ended(capsys, lambda argv: returned) == (status, "")


def test_sigterm_ends_as_ctrl_c_does(capsys):
    def main(argv: list[str]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    assert ended(capsys, main) == (130, "stopped\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_python_ends_does_not_change_the_status(number: int):
    """Python has taken its handlers back when module globals are cleared."""
    code = f"""
import os
from detres.cli.common import run
class Last:
    def __del__(self, kill=os.kill, process=os.getpid()):
        kill(process, {int(number)})
last = Last()
run(lambda argv: 0, [])
"""
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_unknown_option_is_one_line_with_the_nearest(capsys):
    def main(argv: list[str]) -> None:
        parser = tool_parser("train-det", "Train.", "detres train-det")
        add_common_arguments(parser, "resume", "overwrite")
        parser.parse_args(argv)

    status, printed = ended(capsys, main, ("--resum",))
    assert status == 2
    expected = "unrecognized arguments: --resum (did you mean '--resume'?); see `detres train-det --help`"
    assert printed == f"error: {expected}\n"


def test_all_common_arguments():
    parser = tool_parser("x", "X.", "detres x --quiet")
    add_common_arguments(
        parser, "cfg", "set", "data", "init", "out", "resume", "overwrite", "device", "json", "quiet"
    )
    assert vars(parser.parse_args([])) == {
        "cfg": None,
        "set": [],
        "data": None,
        "init": None,
        "out": None,
        "resume": False,
        "overwrite": False,
        "device": "auto",
        "json": None,
        "quiet": False,
    }
    given = parser.parse_args(
        ["--cfg", "a.yaml", "--set", "a=1", "--set", "b=2", "--out", "runs/a", "--json", "x"]
    )
    assert (given.cfg, given.set, given.out, given.json) == (
        Path("a.yaml"),
        ["a=1", "b=2"],
        Path("runs/a"),
        Path("x"),
    )
    assert "example:\n  detres x --quiet\n" in parser.format_help()
    with pytest.raises(ValueError, match="cgf"):
        add_common_arguments(argparse.ArgumentParser(), "cgf")


def test_json_only_where_asked(tmp_path: Path):
    write_report(None, {"AP": 0.5})
    write_report(tmp_path / "deep" / "figures.json", {"AP": None})
    assert (tmp_path / "deep" / "figures.json").read_text() == '{\n "AP": null\n}\n'


def test_unknown_tool_names_the_nearest(capsys, monkeypatch):
    monkeypatch.setattr(cli, "tool_names", lambda: ["train-det", "predict"])
    with pytest.raises(SystemExit) as caught:
        cli.main(["trian-det"])
    assert caught.value.code == 2
    expected = "error: no tool named 'trian-det' (did you mean 'train-det'?); `detres --help` lists them\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_overview_lists_every_tool(capsys, argv: list[str]):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for name in cli.tool_names():
        assert f"\n  {name} " in printed
