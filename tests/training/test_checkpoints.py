"""Checkpoints: which stay, and what happens when one is damaged or does not fit on the device."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import tiny_task
import torch

from detres.errors import UserError
from detres.training.checkpoints import load_checkpoint, save_checkpoint


def saved(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def save(folder: Path, step: int, best_step: int | None = None) -> Path:
    state = {"network": {"weight": torch.full((64,), float(step))}}
    return save_checkpoint(folder, step, state, best_step=best_step, keep=2)


def test_the_newest_two_and_the_best_stay(tmp_path: Path) -> None:
    for step, best in [(1, 1), (2, 1), (3, 1), (4, 1), (5, 5), (6, 5)]:
        save(tmp_path, step, best)
        assert saved(tmp_path) == sorted({max(step - 1, 1), step, best})
    assert (tmp_path / "last").read_text() == "checkpoints/6\n"
    assert (tmp_path / "best").read_text() == "checkpoints/5\n"


def test_half_written_ones_are_swept_up(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
        (tmp_path / f"checkpoints/{step}/.state.77.pt").write_bytes(b"half")
    (tmp_path / "checkpoints/7").mkdir()
    (tmp_path / "checkpoints/7/.state.77.pt").write_bytes(b"half")
    save(tmp_path, 3)
    assert saved(tmp_path) == [2, 3]
    assert not list(tmp_path.rglob(".*"))


def test_no_checkpoint(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None


def test_last_names_the_one_to_load(tmp_path: Path) -> None:
    save(tmp_path, 9)
    save(tmp_path, 10)
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["step"] == 10
    assert torch.equal(state["network"]["weight"], torch.full((64,), 10.0))
    (tmp_path / "last").write_text("checkpoints/9\n")
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["step"] == 9


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def flip(path: Path) -> None:
    """Change one byte of the weights: the file has its length, and a wrong checksum."""
    content = bytearray(path.read_bytes())
    place = content.index(torch.full((4,), 2.0).numpy().tobytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, lambda path: path.write_bytes(b"")])
def test_a_damaged_one_falls_back_to_the_one_before(
    tmp_path: Path, damage, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    damage(save(tmp_path, 2))
    with caplog.at_level("WARNING", "detres"):
        state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["step"] == 1
    assert f"{Path('checkpoints/2/state.pt')} cannot be read" in caplog.text
    truncate(tmp_path / "checkpoints/1/state.pt")
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read"):
        load_checkpoint(tmp_path)


def test_a_run_whose_last_checkpoint_is_damaged_ends_the_same(tmp_path: Path) -> None:
    tiny_task.run(tmp_path / "a")
    tiny_task.run(tmp_path / "b", length="8 iterations")
    truncate(tmp_path / "b/checkpoints/8/state.pt")
    tiny_task.run(tmp_path / "b", resume=True)
    ours, theirs = load_checkpoint(tmp_path / "a"), load_checkpoint(tmp_path / "b")
    assert ours is not None
    assert theirs is not None
    for name, tensor in ours["network"].items():
        assert torch.equal(tensor, theirs["network"][name])


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    torch.save({"format": 99, "step": 1}, path)
    with pytest.raises(UserError, match="has format 99"):
        load_checkpoint(tmp_path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Run:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "was run",))

    torch.save({"format": 1, "step": 1, "network": Run()}, save(tmp_path, 1))
    with pytest.raises(UserError, match="can be read"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "was run").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    save(tmp_path, 1)

    def full(state: object, file) -> None:
        file.write(b"half")
        raise OSError(code, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"no space left on the device for .*checkpoints/2/state\.pt"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert saved(tmp_path) == [1]
    assert (tmp_path / "last").read_text() == "checkpoints/1\n"
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_device_is_an_os_error_of_pythons(tmp_path: Path) -> None:
    """What the case above imitates: writing through Python's file, torch passes the device's error on."""
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "wb") as file:
        torch.save({"weight": torch.zeros(100_000)}, file)
