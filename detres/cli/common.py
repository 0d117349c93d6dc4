"""What all tools share: exit statuses, one-line errors, common options.

Nothing here imports torch before it is needed, so that `--help` is quick.
"""

from __future__ import annotations

import _thread
import argparse
import errno
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from detres import files
from detres.errors import DivergedError, UserError, nearest

DONE, BUG, STOPPED = 0, 1, 130
GRACE = 5.0  # seconds from a signal to the end
# Attributes of parsed arguments, which mean the same in every tool: what is read, and what is written.
INPUTS = ("against", "annotations", "cfg", "classes", "data", "init", "input", "results", "runs", "weights")
OUTPUTS = ("json", "out", "output", "save_results", "submission")


def run(main: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a tool and end the program with its exit status (0, 1, 2, 3 or 130).

    Args:
        main: The tool, which returns the status; None means 0.
        argv: Its arguments; those of the command line if None.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _log_to_standard_error(quiet="--quiet" in arguments)
    signals = _Signals()
    status = _status(main, arguments)
    signals.end_with(status)
    sys.exit(status)


def tool_parser(name: str, description: str, example: str) -> argparse.ArgumentParser:
    """A parser whose help ends in an example and whose errors are one line.

    Args:
        name: The tool's name after `detres`, with dashes.
        description: What the tool does.
        example: One or more command lines.
    """
    lines = "\n".join(f"  {line.strip()}" for line in example.strip().splitlines())
    return _Parser(
        prog=f"detres {name}",
        description=description,
        epilog=f"example:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_common_arguments(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add common options, which mean the same in every tool.

    Args:
        parser: The tool's parser.
        names: Some of `cfg`, `set`, `data`, `init`, `out`, `resume`, `overwrite`, `device`, `json`, `quiet`; also
            the attributes of the parsed arguments (`set` is a list, `cfg`, `out` and `json` are paths or None).
    """
    for name in names:
        add = parser.add_argument
        match name:
            case "cfg":
                add(
                    "--cfg",
                    type=Path,
                    metavar="FILE|RECIPE",
                    help="configuration: a YAML file, or the name of a shipped recipe such as finetune or voc/r101_c4",
                )
            case "set":
                add(
                    "--set",
                    action="append",
                    default=[],
                    metavar="KEY.PATH=VALUE",
                    help="override one key, the value read as YAML; repeatable",
                )
            case "data":
                add("--data", metavar="DIR", help="data set; beats the configuration")
            case "init":
                add(
                    "--init", metavar="WEIGHTS", help="weights to start from: a file, or torchvision:resnet50"
                )
            case "out":
                add(
                    "--out",
                    type=Path,
                    metavar="DIR",
                    help="run folder (default: runs/<name of --cfg>, such as runs/finetune or runs/voc/r101_c4)",
                )
            case "resume":
                add(
                    "--resume",
                    action="store_true",
                    help="go on in --out; starts afresh where there is nothing",
                )
            case "overwrite":
                add("--overwrite", action="store_true", help="replace the run that --out holds")
            case "device":
                add(
                    "--device",
                    default="auto",
                    metavar="auto|cpu|cuda[:N]",
                    help="where to compute (default: auto)",
                )
            case "json":
                add("--json", type=Path, metavar="FILE", help="write the figures for machines")
            case "quiet":
                add("--quiet", action="store_true", help="no progress, only results and errors")
            case _:
                raise ValueError(f"no common argument {name!r}")


def named_inputs(arguments: argparse.Namespace) -> list[Path]:
    """Files and folders that parsed arguments name to be read; `--data` is looked up as the readers do."""
    values: list[object] = []
    for name in INPUTS:
        value = getattr(arguments, name, None)
        values += value if isinstance(value, list) else [value]
    if getattr(arguments, "data", None):
        from detres.data.formats import resolve_directory

        with suppress(UserError):  # the tool will say that it is missing
            values.append(resolve_directory(arguments.data))
    return [Path(str(value)) for value in values if value is not None]


def write_report(path: Path | None, figures: object) -> None:
    """Write `--json`'s file, completely or not at all; without the option do nothing."""
    if path is not None:
        files.write_json(path, figures)


class _Parser(argparse.ArgumentParser):
    def parse_args(self, args=None, namespace=None):  # type: ignore[override]  # argparse's has overloads
        """Parse the arguments and refuse output files that cannot be written or would replace an input."""
        parsed = super().parse_args(args, namespace)
        outputs = [getattr(parsed, name, None) for name in OUTPUTS]
        outputs = [
            path for path in outputs if path and (path == getattr(parsed, "json", None) or not path.is_dir())
        ]
        if outputs:
            files.check_outputs(outputs, named_inputs(parsed), overwrite=True)
        return parsed

    def error(self, message: str) -> NoReturn:
        options = [option for action in self._actions for option in action.option_strings]
        unknown = message.removeprefix("unrecognized arguments: ").split()[0].partition("=")[0]
        close = nearest(unknown, options) if message.startswith("unrecognized") else ""
        raise UserError(f"{message}{close}; see `{self.prog} --help`")


def _status(main: Callable[[list[str]], int | None], arguments: list[str]) -> int:
    try:
        status = main(arguments) or DONE
        sys.stdout.flush()
        return status
    except (UserError, DivergedError) as error:
        return _report(str(error), error.exit_status)
    except KeyboardInterrupt:
        return _report("stopped", STOPPED, prefix="")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STOPPED
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "detres":
            return _bug()
        return _report(
            f"the package '{error.name}' is not installed: run `pip install -e .`",
            UserError.exit_status,
        )
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            place = f" for {error.filename}" if error.filename else ""
            return _report(
                f"no space left on the device{place}: free some or choose another folder",
                UserError.exit_status,
            )
        if type(error).__name__ == "OutOfMemoryError":
            hint = "try smaller images, a smaller train.batch with train.accumulate, or --device cpu"
            return _report(f"the GPU is out of memory: {hint}", UserError.exit_status)
        return _bug()


def _report(message: str, status: int, prefix: str = "error: ") -> int:
    print(f"{prefix}{message}", file=sys.stderr, flush=True)
    return status


def _bug() -> int:
    traceback.print_exc()
    return BUG


class _Signals:
    """Makes Ctrl-C and SIGTERM end the program with status 130, wherever it is.

    They raise KeyboardInterrupt. In an import, where that can be swallowed or leave half a module, they end the
    program, as a second signal does; and if it has not ended after `GRACE` seconds, because something swallowed the
    exception or hangs, it is ended. A loader's worker, forked from the program, simply ends.
    """

    def __init__(self) -> None:
        from detres.training.interruption import is_importing

        self._is_importing = is_importing
        self._owner = os.getpid()
        self._came = False
        self._status: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def end_with(self, status: int) -> None:
        """The tool has ended, and said so: nothing waits for a worker that hangs, and no signal changes the status.

        As Python ends, it takes handlers back, so that a signal would kill it; one that is ignored stays so.
        """
        self._status = status
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        for worker in getattr(sys.modules.get("multiprocessing"), "active_children", list)():
            worker.kill()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            os._exit(128 + number)
        if self._came or self._is_importing(frame):
            self._end()
        self._came = True
        sys.unraisablehook = lambda _: None  # of objects that the exception leaves half made
        _thread.start_new_thread(self._end_late, ())  # threading.Thread takes locks that the program may hold
        raise KeyboardInterrupt

    def _end_late(self) -> None:
        time.sleep(GRACE)
        if self._status is None:
            self._end()

    def _end(self) -> NoReturn:
        os.write(2, b"stopped\n")
        os._exit(STOPPED)


def _log_to_standard_error(quiet: bool) -> None:
    log = logging.getLogger("detres")
    log.setLevel(logging.INFO)
    if not log.handlers:
        handler = _StandardError()
        handler.setLevel(logging.WARNING if quiet else logging.INFO)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)


class _StandardError(logging.StreamHandler):
    """Writes to the current `sys.stderr`, which a progress bar replaces while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)
