"""Pickles: tensors and arrays come out, code does not run."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from detres.errors import WeightsError
from detres.weights.pickles import is_npz, read_arrays, read_pickle


class Bomb:
    """Unpickling it would make a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def write_torch(content, path: Path) -> None:
    torch.save(content, path)


def write_torch_legacy(content, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def write_pickle(content, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def write_python2_pickle(content, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("write", [write_torch, write_torch_legacy, write_pickle, write_python2_pickle])
@pytest.mark.parametrize("deep", [False, True])
def test_pickle_that_would_run_code_is_refused_and_not_run(tmp_path, write, deep):
    made = tmp_path / "made"
    bomb = Bomb(made)
    write(
        {"state_dict": OrderedDict(a=np.zeros(1) if write in (write_pickle,) else 1, b=bomb)}
        if deep
        else bomb,
        tmp_path / "w",
    )
    with pytest.raises(WeightsError, match=r"names '[\w.]+', which weights do not need.*nothing was run"):
        read_pickle(tmp_path / "w")
    assert not made.exists()


@pytest.mark.parametrize("write", [write_torch, write_torch_legacy])
def test_torch_files_of_both_forms_are_read(tmp_path, write):
    content = OrderedDict(weight=torch.arange(6.0).reshape(2, 3), count=torch.tensor(3))
    write(content, tmp_path / "w.pkl")  # the suffix does not decide
    read = read_pickle(tmp_path / "w.pkl")
    assert list(read) == list(content)
    assert all(torch.equal(read[name], tensor) for name, tensor in content.items())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numpy_pickles_are_read(tmp_path, protocol):
    content = {
        "blobs": {"conv1_w": np.arange(8, dtype=np.float32).reshape(2, 4).T, "big": np.array([1, 2], ">i4")},
        "scalar": np.float64(2.5),
        "cfg": "text",
        "names": np.array(["a", "b"]),
    }
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    read = read_pickle(tmp_path / "w.pkl")
    assert torch.equal(read["blobs"]["conv1_w"], torch.tensor([[0.0, 4], [1, 5], [2, 6], [3, 7]]))
    assert read["blobs"]["big"].tolist() == [1, 2]
    assert (read["scalar"], read["cfg"], read["names"]) == (2.5, "text", ["a", "b"])


def test_python2_array_names_are_read(tmp_path):
    # numpy's old module names, as Python 2's pickles of weights have them
    text = pickle.dumps({"w": np.ones(3, np.float32)}, protocol=2)
    old = text.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != text or b"numpy.core" in text
    (tmp_path / "w.pkl").write_bytes(old)
    assert torch.equal(read_pickle(tmp_path / "w.pkl")["w"], torch.ones(3))


@pytest.mark.parametrize("write", [write_torch, write_torch_legacy, write_pickle])
def test_truncated_files_are_named(tmp_path, write):
    path = tmp_path / "w.pth"
    write({"w": np.ones(1000, np.float32) if write is write_pickle else torch.ones(1000)}, path)
    whole = path.read_bytes()
    for share in (0.0, 0.2, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(WeightsError, match=r"w.pth: truncated or not a weights pickle") as caught:
            read_pickle(path)
        assert "weights_only" not in str(caught.value)


def test_what_is_no_dictionary_or_no_file_is_refused(tmp_path):
    torch.save([torch.ones(1)], tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="holds a list"):
        read_pickle(tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="no such weights file"):
        read_pickle(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello there")
    with pytest.raises(WeightsError, match="truncated or not"):
        read_pickle(tmp_path / "text.pth")


def test_endless_and_deep_content_is_named(tmp_path):
    endless: dict[str, object] = {"a": torch.ones(1)}
    endless["model"] = endless
    torch.save(endless, tmp_path / "endless.pth")
    (tmp_path / "deep.pkl").write_bytes(
        b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b"."
    )  # list in list...
    for name in ("endless.pth", "deep.pkl"):
        with pytest.raises(WeightsError, match=r"truncated or not a weights pickle \(maximum recursion"):
            read_pickle(tmp_path / name)


def test_npz_archives_are_read_without_objects(tmp_path):
    np.savez(tmp_path / "w.npz", **{"conv1/0": np.ones((2, 3), np.float32), "count": np.array(7)})  # type: ignore[arg-type]
    assert is_npz(tmp_path / "w.npz")
    read = read_arrays(tmp_path / "w.npz")
    assert torch.equal(read["conv1/0"], torch.ones(2, 3))
    assert read["count"].shape == ()
    np.savez(tmp_path / "o.npz", w=np.array([{"an": "object"}], dtype=object))
    with pytest.raises(WeightsError, match=r"o.npz: truncated or not a weights pickle"):
        read_arrays(tmp_path / "o.npz")
    torch.save({"w": torch.ones(1)}, tmp_path / "w.pth")
    assert not is_npz(tmp_path / "w.pth")


def test_lists_of_arrays_and_single_numbers_keep_their_shapes(tmp_path):
    content = {"fc1000": [np.ones((2, 3), np.float32), np.zeros(2)], "count": np.array(7)}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content))
    read = read_pickle(tmp_path / "w.pkl")
    assert [tuple(blob.shape) for blob in read["fc1000"]] == [(2, 3), (2,)]
    assert (read["count"].shape, int(read["count"])) == ((), 7)


def test_damage_of_any_kind_is_named(tmp_path):
    """One byte at a time overwritten: the arrays come out, or the file is named."""
    np.savez_compressed(tmp_path / "w.npz", w=np.arange(60.0), v=np.ones((2, 2)))
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"w": np.arange(3.0), "text": "a"}, protocol=4))
    for name, read in (("w.npz", read_arrays), ("w.pkl", read_pickle)):
        whole = (tmp_path / name).read_bytes()
        broken = tmp_path / f"broken.{name}"
        refused = 0
        for place in range(0, len(whole), 2):
            for value in (whole[place] ^ 0x80, 255):
                broken.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
                try:
                    read(broken)
                except WeightsError:
                    refused += 1
        assert refused > 20
    (tmp_path / "frame.pkl").write_bytes(b"\x80\x04\x95" + b"\xff" * 7 + b"\x7fN.")
    with pytest.raises(WeightsError, match="truncated or not a weights pickle"):
        read_pickle(tmp_path / "frame.pkl")
    (tmp_path / "z.npz").write_bytes(b"PK\x03\x04" + b"\xff" * 80)
    assert not is_npz(tmp_path / "z.npz")
