"""The run folder: what it refuses, what it replaces, what it records."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_task
from pydantic import Field

from detres.config import Length, Section
from detres.errors import UserError
from detres.training.config import TrainConfig
from detres.training.environment import git_commit
from detres.training.run_folder import Metrics, RunFolder


class Whole(Section):
    """A configuration with stages."""

    train: TrainConfig = Field(default=TrainConfig(), description="...")
    name: str = Field(default="a", description="...")


def make_run(folder: Path, config: Section | None = None) -> None:
    RunFolder.open(folder, config or Whole()).close()


def test_another_run_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path)
    with pytest.raises(UserError, match=r"holds another run: --resume .* --overwrite"):
        RunFolder.open(tmp_path, Whole())
    with pytest.raises(UserError, match="give one of them"):
        RunFolder.open(tmp_path, Whole(), resume=True, overwrite=True)


def test_a_folder_with_files_of_others(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "config.yaml").write_text("mine")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match=r"is not a run of detres but holds config\.yaml"):
            RunFolder.open(tmp_path, Whole(), **options)
    (tmp_path / "config.yaml").unlink()
    make_run(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="is a file"):
        RunFolder.open(tmp_path / "out", Whole())


def test_overwrite_removes_the_run_and_nothing_else(tmp_path: Path) -> None:
    tiny_task.run(tmp_path, length="4 iterations")
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder.open(tmp_path, Whole(), overwrite=True).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.yaml",
        "environment.json",
        "notes.txt",
    ]


def test_a_run_that_never_began_leaves_nothing_behind(tmp_path: Path) -> None:
    """The user mends the input and starts the same command again."""
    with pytest.raises(UserError, match="no such data"), RunFolder.open(tmp_path / "run", Whole()):
        raise UserError("no such data")
    assert not (tmp_path / "run").exists()


def test_a_run_that_began_stays_whatever_ends_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no space"), RunFolder.open(tmp_path, Whole()) as run:
        Metrics(run, 0).write(1, {"loss": 1.0})
        raise UserError("no space")
    assert (tmp_path / "metrics.jsonl").stat().st_size > 0
    with pytest.raises(UserError, match="other data"), RunFolder.open(tmp_path, Whole(), resume=True):
        raise UserError("other data")
    assert (tmp_path / "config.yaml").exists()


def test_resume_of_nothing_starts_afresh(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "new", Whole(), resume=True) as run:
        assert not run.resumed


def test_resume_with_another_configuration_names_the_keys(tmp_path: Path) -> None:
    make_run(tmp_path)
    other = Whole(train=TrainConfig(lr=0.5, workers=7), name="b")
    with pytest.raises(UserError, match=r"train\.lr was 0\.001, is 0\.5, name was a, is b") as caught:
        RunFolder.open(tmp_path, other, resume=True)
    assert "workers was" not in str(caught.value)
    assert "lr: 0.001" in (tmp_path / "config.yaml").read_text()


def test_resume_of_a_run_that_began_before_a_key_existed(tmp_path: Path) -> None:
    """It stood at its default: with that the run goes on, with another value it does not."""
    make_run(tmp_path)
    lines = (tmp_path / "config.yaml").read_text().splitlines(keepends=True)
    (tmp_path / "config.yaml").write_text("".join(line for line in lines if not line.startswith("name:")))
    with pytest.raises(UserError, match="name was a, is b"):
        RunFolder.open(tmp_path, Whole(name="b"), resume=True)
    with RunFolder.open(tmp_path, Whole(), resume=True) as run:
        assert run.resumed


def test_resume_with_a_mapping_whose_default_is_empty(tmp_path: Path) -> None:
    class Named(Whole):
        names: dict[str, str] = Field(default={}, description="...")

    make_run(tmp_path, Named(names={"a": "b"}))
    with RunFolder.open(tmp_path, Named(names={"a": "b"}), resume=True) as run:
        assert run.resumed
    with pytest.raises(UserError, match=r"names\.a was b, is absent"):
        RunFolder.open(tmp_path, Named(), resume=True)


def test_resume_with_other_lengths_and_cadences(tmp_path: Path) -> None:
    make_run(tmp_path)
    length = Length.parse("99 epochs")
    other = TrainConfig(
        length=length, workers=0, evaluate_every=None, checkpoint_every=length, log_every=1, keep=9
    )
    with RunFolder.open(tmp_path, Whole(train=other), resume=True) as run:
        assert run.resumed
    assert "99 epochs" in (tmp_path / "config.yaml").read_text()


def test_environment(tmp_path: Path) -> None:
    make_run(tmp_path)
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert set(environment["versions"]) >= {"python", "torch", "torchvision", "numpy", "albumentations"}
    assert environment["machine"]["cpus"] >= 1
    assert environment["command"]
    RunFolder.open(tmp_path, Whole(), resume=True).close()
    RunFolder.open(tmp_path, Whole(), resume=True).close()
    again = json.loads((tmp_path / "environment.json").read_text())
    assert len(again.pop("resumed")) == 2
    assert again == environment


def test_commit_outside_of_a_checkout(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None


def test_log_is_copied_while_open(tmp_path: Path) -> None:
    log = logging.getLogger("detres")
    with RunFolder.open(tmp_path, Whole()):
        log.info("inside")
    log.warning("outside")
    assert "INFO inside" in (tmp_path / "log.txt").read_text()
    assert "outside" not in (tmp_path / "log.txt").read_text()


def test_metrics_are_cut_back(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, Whole()) as run:
        metrics = Metrics(run, 0)
        for step in (5, 10, 15):
            metrics.write(step, {"loss": float(step), "val/AP": None, "odd": float("nan")})
        metrics.close()
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 10, "los')  # killed while writing
        Metrics(run, 10).close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": step, "loss": step, "val/AP": None, "odd": None} for step in (5, 10)]


HOLDER = """
import sys, time
from pathlib import Path
from detres.training.config import TrainConfig
from detres.training.run_folder import RunFolder
run = RunFolder.open(Path(sys.argv[1]), TrainConfig(), resume=True)
print("open", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_in_use_is_refused_until_its_process_is_gone(
    tmp_path: Path, options: dict[str, bool]
) -> None:
    run = tmp_path / "run"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "open\n"
    before = (run / "environment.json").read_text()
    with pytest.raises(
        UserError, match=rf"is in use: process {holder.pid} on {re.escape(socket.gethostname())} "
    ):
        RunFolder.open(run, TrainConfig(), **options)
    assert (run / "environment.json").read_text() == before
    holder.kill()
    holder.communicate()
    assert (run / ".lock").exists()
    RunFolder.open(run, TrainConfig(), **(options or {"resume": True})).close()
    assert not (run / ".lock").exists()


def test_a_folder_is_opened_once_in_a_process_too(tmp_path: Path) -> None:
    with (
        RunFolder.open(tmp_path, Whole()),
        pytest.raises(UserError, match=rf"in use: process {os.getpid()} "),
    ):
        RunFolder.open(tmp_path, Whole(), resume=True)


def test_overwrite_removes_a_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.txt").write_text("mine")
    make_run(run)
    (run / "checkpoints").symlink_to(elsewhere)
    RunFolder.open(run, Whole(), overwrite=True).close()
    assert not (run / "checkpoints").is_symlink()
    assert (elsewhere / "mine.txt").read_text() == "mine"


def test_half_written_files_are_swept_up_at_resume(tmp_path: Path) -> None:
    tiny_task.run(tmp_path, length="4 iterations")
    for folder in (tmp_path, tmp_path / "checkpoints/4", tmp_path / "images"):
        folder.mkdir(exist_ok=True)
        (folder / ".detres-1-2.pt").write_bytes(b"half")
    tiny_task.run(tmp_path, length="4 iterations", resume=True)
    assert not list(tmp_path.rglob(".*"))


def test_damaged_lines_of_metrics_are_dropped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_task.run(tmp_path / "b", length="8 iterations")
    (tmp_path / "b/last").write_bytes(b"\xff")
    whole = (tmp_path / "b/metrics.jsonl").read_bytes()
    (tmp_path / "b/metrics.jsonl").write_bytes(b"\xff\n" + whole + b"[1]\n" + b"[" * 100_000 + b"\n")
    with caplog.at_level("WARNING", "detres"):
        tiny_task.run(tmp_path / "b", resume=True)
    assert "metrics.jsonl: 3 damaged lines are dropped" in caplog.text
    assert (tmp_path / "b/metrics.jsonl").read_bytes().startswith(whole)


def test_the_log_ends_where_it_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("detres")
    with RunFolder.open(tmp_path, Whole()) as run:
        log.info("inside")
        stream = run._log_file.stream
        assert stream is not None
        stream.close()
        run._log_file.stream = open("/dev/full", "w")  # noqa: SIM115  the handler closes it
        log.info("lost")
        log.info("lost too")
    assert "Traceback" not in capsys.readouterr().err
