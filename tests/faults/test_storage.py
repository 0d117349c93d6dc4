"""Storage that fails in the middle of a run: one line, status 2, and what was saved before is whole.

A program trains the tiny task of `tests/training`; in its third step the fault begins.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_task
from trainings import environment

from detres.training.checkpoints import load_checkpoint

PROGRAM = """
import os, resource, shutil, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import tiny_task
from detres.cli.common import run
out, fault, size = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])

def begin():
    if fault == "full":
        with open(out / "filler", "wb", buffering=0) as filler:
            free = os.statvfs(out).f_bavail * os.statvfs(out).f_frsize
            filler.write(bytes(max(free - size, 0)))
    elif fault == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    elif fault == "read-only":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=4k", "none", out], check=True)
    elif fault == "gone":
        shutil.rmtree(out)
    elif fault == "no place":
        shutil.rmtree(out)
        out.write_text("")

def main(argv):
    made = tiny_task.interrupted(tiny_task.TinyTask(tiny_task.network()), 3, begin)
    tiny_task.run(out, made=made, checkpoint_every="2 iterations", log_every=1, evaluate_every="6 iterations")

run(main, [])
"""


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a megabyte in memory."""
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path]).returncode
    ):
        pytest.skip("only root can mount a small file system")
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path], check=True)


def ended(out: Path, fault: str, size: int = 0) -> str:
    """Standard error of the program, which ended with status 2, said why in its last line, and showed no traceback."""
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        str(Path(__file__).parents[1] / "training"),
        out,
        fault,
        str(size),
    ]
    process = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120)
    assert process.returncode == 2, process.stderr
    assert "Traceback" not in process.stderr
    assert "Logging error" not in process.stderr
    last = process.stderr.splitlines()[-1]
    assert last.startswith("error: "), process.stderr
    assert sum(line.startswith("error: ") for line in process.stderr.splitlines()) == 1
    return last


@pytest.mark.parametrize("size", [0, 4096, 8192, 16384])
def test_a_full_disk(small_disk, size):
    assert "no space left on the device" in ended(small_disk / "run", "full", size)
    state = load_checkpoint(small_disk / "run")
    assert state is not None
    assert state["step"] >= 2
    os.unlink(small_disk / "run/filler")
    tiny_task.run(small_disk / "run", resume=True, checkpoint_every="2 iterations", log_every=1)


@pytest.mark.parametrize("size", [1, 300, 1500, 6000])
def test_a_limit_on_the_size_of_files(tmp_path, size):
    assert "larger than a file may be here" in ended(tmp_path / "run", "limit", size)
    state = load_checkpoint(tmp_path / "run")
    assert state is not None
    assert state["step"] >= 2


def test_a_folder_that_becomes_read_only(small_disk):
    """A file system without writing takes its place."""
    try:
        assert "Read-only file system" in ended(small_disk / "run", "read-only")
    finally:
        subprocess.run(["umount", "-l", small_disk / "run"], check=True)
    assert load_checkpoint(small_disk / "run") is not None


def test_a_folder_that_is_removed(tmp_path):
    assert "is gone: somebody removed it during the run" in ended(tmp_path / "run", "gone")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_becomes_a_file(tmp_path):
    ended(tmp_path / "run", "no place")
