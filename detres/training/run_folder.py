"""The folder of a run: its configuration, environment, log, metrics and weights.

Two runs never mix in a folder: a run that is there is an error, or it is resumed or replaced if the user asks for it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from detres.config import Section, to_yaml
from detres.errors import UserError, listed
from detres.files import atomic_path, explained, remove_temporary, write_json, write_text
from detres.strict_yaml import read_document
from detres.training.config import free_at_resume
from detres.training.environment import describe_environment
from detres.training.lock import FolderLock

log = logging.getLogger("detres")

FILES = (
    "config.yaml",
    "environment.json",
    "log.txt",
    "metrics.jsonl",
    "last",
    "best",
    "model.safetensors",
    "pixels.npz",
)
# `steps` holds run folders for the parts of a run that has parts (alternating training).
FOLDERS = ("checkpoints", "diverged", "eval", "images", "steps", "tensorboard")


class RunFolder:
    """An open run folder, which gets a copy of the log in log.txt; a context manager that closes it.

    A new run that ends in a `UserError` before its first logged step (wrong data, wrong weights) is removed.

    Attributes:
        path: The folder.
        resumed: Whether it held this run before.
    """

    def __init__(self, path: Path, resumed: bool, lock: FolderLock):
        self.path = path
        self._lock = lock
        self.resumed = resumed
        self.images = path / "images"
        self.eval = path / "eval"
        self.tensorboard = path / "tensorboard"
        self.weights = path / "model.safetensors"
        self._log_file = _LogFile(path / "log.txt", encoding="utf-8", delay=True)
        self._log_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger = logging.getLogger("detres")
        logger.addHandler(self._log_file)
        if logger.getEffectiveLevel() > logging.INFO:
            logger.setLevel(logging.INFO)

    @staticmethod
    def open(
        path: str | Path, config: Section, *, resume: bool = False, overwrite: bool = False
    ) -> RunFolder:
        """Open `path` for a run with the resolved `config`; until `close` no other process can.

        Args:
            path: The folder; created where missing.
            config: Saved as config.yaml; when resuming, compared with the saved one.
            resume: Go on with the run that is there, if any.
            overwrite: Remove the run that is there, if any (its own files and nothing else).

        Raises:
            UserError: The folder holds another run, or files with the names of a run's; the configuration differs from
                that of the run to resume in other keys than `free_at_resume`; another process has the folder open; the
                folder cannot be written.
        """
        path = Path(path)
        if resume and overwrite:
            raise UserError("--resume goes on with a run and --overwrite replaces it: give one of them")
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file; --out names the folder of the run")
        created = not path.exists()
        with explained(path / "config.yaml"):
            path.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(path)
        try:
            resumed = _prepare(path, config, resume=resume, overwrite=overwrite)
            return RunFolder(path, resumed, lock)
        except BaseException:
            lock.release()
            if created:
                with suppress(OSError):
                    path.rmdir()
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_log()
        useless = isinstance(error, UserError) and not self.resumed and not self._has_begun()
        with suppress(OSError):  # which would hide the error
            if useless:  # it has nothing to go on with, and the next run should not be refused for it
                _remove_run(self.path)
        self.close()
        with suppress(OSError):
            if useless:
                self.path.rmdir()  # unless it has files of others

    def _has_begun(self) -> bool:
        """Whether anything was written of a step."""
        metrics = self.path / "metrics.jsonl"
        return (
            any(self.path.glob("steps/*/last"))
            or (self.path / "last").exists()
            or (metrics.exists() and metrics.stat().st_size > 0)
        )

    def close(self) -> None:
        """Stop copying the log into log.txt, and let other processes open the folder."""
        self._close_log()
        self._lock.release()

    def _close_log(self) -> None:
        logging.getLogger("detres").removeHandler(self._log_file)
        with suppress(OSError):
            self._log_file.close()


class _LogFile(logging.FileHandler):
    """A copy of the log that ends, with a word, where it cannot be written: the run itself may have space."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Say once why; then this handler does nothing."""
        if self.level <= logging.CRITICAL:
            self.setLevel(logging.CRITICAL + 1)
            logging.getLogger("detres").warning("%s ends here: %s", self.baseFilename, sys.exc_info()[1])


class Metrics:
    """metrics.jsonl and TensorBoard: one object for each logged step or evaluation, written at once.

    Args:
        run: The run folder.
        step: Iterations done so far; lines of later steps, left by a run that was killed, are cut off.
        evaluated: Whether the evaluation of that step is finished; the line of an unfinished one is cut off too.
    """

    def __init__(self, run: RunFolder, step: int, *, evaluated: bool = True):
        path = run.path / "metrics.jsonl"
        _cut_back(path, step, evaluated)
        self._path = path
        with explained(path):
            self._file = path.open("a", encoding="utf-8")
            self._scalars = _Scalars(run.tensorboard, purge_step=step + 1 if step else None)

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Add one line; a figure that is None or not finite is null."""
        known = {
            key: value if value is not None and math.isfinite(value) else None
            for key, value in values.items()
        }
        with explained(self._path):
            self._file.write(json.dumps({"step": step, **known}, allow_nan=False) + "\n")
            self._file.flush()
            self._scalars.write(step, {key: value for key, value in known.items() if value is not None})

    def close(self) -> None:
        with suppress(OSError):  # what could not be written has been said
            self._file.close()
        with suppress(OSError):
            self._scalars.close()


class _Scalars:
    """TensorBoard's file of scalars, written without the thread of its own writer, whose errors nobody could catch.

    Args:
        folder: Where TensorBoard looks for it.
        purge_step: Step from which on scalars of earlier files are forgotten; None: none.
    """

    def __init__(self, folder: Path, purge_step: int | None):
        from tensorboard.compat.proto.event_pb2 import SessionLog  # type: ignore[attr-defined]
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("ab")
        self._records = RecordWriter(self._file)
        self._add(file_version="brain.Event:2")
        if purge_step is not None:
            self._add(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]

        scalars = [Summary.Value(tag=key, simple_value=value) for key, value in values.items()]
        self._add(step=step, summary=Summary(value=scalars))

    def close(self) -> None:
        self._file.close()

    def _add(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[attr-defined]

        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())
        self._file.flush()


def _cut_back(path: Path, step: int, evaluated: bool) -> None:
    """Remove the lines after `step`, and lines that are damaged (the last is incomplete where the run was killed)."""

    def stays(values: dict[str, Any]) -> bool:
        is_evaluation = any(key.startswith("val/") for key in values)
        return values["step"] < step or (values["step"] == step and (evaluated or not is_evaluation))

    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    read = [(line, _metrics_line(line)) for line in lines]
    damaged = sum(values is None for line, values in read if line.endswith(b"\n"))
    if damaged:
        log.warning("%s: %d damaged lines are dropped", path, damaged)
    with atomic_path(path) as beside:
        beside.write_bytes(b"".join(line for line, values in read if values is not None and stays(values)))


def _metrics_line(line: bytes) -> dict[str, Any] | None:
    """The figures of a line; None where it is not whole."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    whole = isinstance(values, dict) and isinstance(values.get("step"), int)
    return values if whole else None


def _prepare(path: Path, config: Section, *, resume: bool, overwrite: bool) -> bool:
    """Make a locked folder ready for `config`; whether it holds the run to go on with."""
    names = [name for name in (*FILES, *FOLDERS) if (path / name).exists()]
    is_run = _environment(path) is not None
    if names and not is_run:
        raise UserError(
            f"{path} is not a run of detres but holds {listed(names)}, which a run would replace: "
            "choose another --out"
        )
    if is_run and not (resume or overwrite):
        raise UserError(
            f"{path} holds another run: --resume goes on with it, --overwrite replaces it, "
            "or choose another --out"
        )
    if is_run and resume:
        _check_same_config(path, config)
    if is_run and overwrite:
        _remove_run(path)
    for top in (path / name for name in FOLDERS):
        for folder in (top, *(place for place in top.rglob("*") if place.is_dir())):
            remove_temporary(folder)
    remove_temporary(path)
    _write_environment(path)
    write_text(path / "config.yaml", to_yaml(config))
    return is_run and resume


def _environment(path: Path) -> dict | None:
    """The content of environment.json, by which a run is recognized; None where it is missing or not ours."""
    try:
        found = json.loads((path / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "detres" in found.get("versions", {}) else None


def _write_environment(path: Path) -> None:
    earlier = _environment(path)
    now = describe_environment()
    if earlier is not None:
        now = {**earlier, "resumed": [*earlier.get("resumed", []), now]}
    write_json(path / "environment.json", now)


def _remove_run(path: Path) -> None:
    """Remove the files of a run; environment.json last, because the folder is recognized by it. Links go, not more."""
    for name in FOLDERS:
        if (path / name).is_symlink():
            (path / name).unlink()
        elif (path / name).is_dir():
            shutil.rmtree(path / name)
    remove_temporary(path)
    for name in sorted(FILES, key="environment.json".__eq__):
        (path / name).unlink(missing_ok=True)


def _check_same_config(path: Path, config: Section) -> None:
    if not (path / "config.yaml").exists():
        return  # the run was killed before it was written
    asked = dict(_leaves(config.model_dump(mode="json")))
    # A key that is missing, because an earlier version began the run, counts as its default.
    defaults = _leaves(type(config)().model_dump(mode="json"))
    saved = {key: value for key, value in defaults if key in asked}
    saved |= dict(_leaves(read_document(path / "config.yaml").values))
    steering = (saved.get(f"train.{key}", saved.get(key)) for key in ("schedule", "warmup_until_error"))
    free = free_at_resume(*steering)
    different = [
        f"{key} was {saved.get(key, 'absent')}, is {asked.get(key, 'absent')}"
        for key in dict.fromkeys([*saved, *asked])
        if key.removeprefix("train.") not in free and saved.get(key, ...) != asked.get(key, ...)
    ]
    if different:
        raise UserError(
            f"{path} was started with another configuration ({listed(different)}): resume with its config.yaml "
            f"(only {', '.join(f'train.{key}' for key in sorted(free))} may change), "
            "or choose another --out"
        )


def _leaves(values: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of every value that is not a mapping."""
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, values
