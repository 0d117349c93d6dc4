"""CIFAR-10's own files, made by the test in both forms: truth are the pixels and labels that were written."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from detres.classification.data import read_image_labels, sources_of
from detres.data.cifar_batches import read_batch
from detres.data.config import Source
from detres.data.decoding import read_image
from detres.data.readers import cifar
from detres.errors import DataError

NAMES = [f"thing{number}" for number in range(10)]
FILES = [*cifar.BATCHES["train"], *cifar.BATCHES["test"]]


def content(number: int) -> tuple[np.ndarray, list[int]]:
    """Three pictures (3, 3, 32, 32) and their labels."""
    images = np.random.default_rng(number).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    return images, [number, 9 - number, 9]


def as_python2(value: object) -> bytes:
    """Keys as byte strings, as Python 2 pickled them; strings come out of the latin-1 unpickler as text."""
    return pickle.dumps(value, protocol=2)


@pytest.fixture(params=["py", "bin"])
def folder(request, tmp_path) -> Path:
    root = tmp_path / f"cifar-10-batches-{request.param}"
    root.mkdir()
    for number, name in enumerate(FILES):
        images, labels = content(number)
        flat = images.reshape(3, -1)
        if request.param == "py":
            (root / name).write_bytes(
                as_python2({b"data": flat, b"labels": labels, b"batch_label": b"of a test"})
            )
        else:
            records = np.concatenate([np.array(labels, np.uint8)[:, None], flat], axis=1)
            (root / f"{name}.bin").write_bytes(records.tobytes())
    if request.param == "py":
        (root / "batches.meta").write_bytes(as_python2({b"label_names": NAMES}))
    else:
        (root / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    return root


def test_pixels_and_labels_are_those_written(folder):
    for directory in (folder, folder.parent):
        train = read_image_labels([Source(dir=str(directory), split="train")])
        assert (len(train), train.class_names) == (15, tuple(NAMES))
        test = read_image_labels([Source(dir=str(directory), split="test")])
        for part, numbers in ((train, range(5)), (test, [5])):
            images = np.concatenate([content(number)[0] for number in numbers])
            assert part.labels.tolist() == [label for number in numbers for label in content(number)[1]]
            for index, image in enumerate(images):
                assert np.array_equal(read_image(part.paths[index]), image.transpose(1, 2, 0))
    train, val = sources_of(str(folder))
    assert [source.split for source in (*train, *val)] == ["train", "test"]


def test_split_and_files_that_are_not_there(folder):
    with pytest.raises(DataError, match=r"split 'val' is not there.*CIFAR-10 has train, test"):
        cifar.read(folder, "val")
    with pytest.raises(DataError, match="choose a split; CIFAR-10 has train, test"):
        cifar.read(folder, None)
    next(folder.glob("data_batch_3*")).unlink()
    with pytest.raises(DataError, match=r"data_batch_3(\.bin)? is not there"):
        cifar.read(folder, "train")
    for path in folder.glob("batches.meta*"):
        path.unlink()
    with pytest.raises(DataError, match=r"batches\.meta is not there, which names the classes"):
        cifar.read(folder, "test")


def test_truncated_file_is_named(folder):
    path = next(folder.glob("data_batch_2*"))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"data_batch_2(\.bin)? is truncated or not"):
        cifar.read(folder, "train")
    with pytest.raises(DataError, match="the file holds 3 pictures"):
        read_image(f"{next(folder.glob('data_batch_1*'))}!3")


def test_label_out_of_range_is_named(folder):
    images, labels = content(1)
    path = next(folder.glob("data_batch_1*"))
    labels[2] = 10
    flat = images.reshape(3, -1)
    if path.suffix == ".bin":
        path.write_bytes(np.concatenate([np.array(labels, np.uint8)[:, None], flat], axis=1).tobytes())
    else:
        path.write_bytes(as_python2({"data": flat, "labels": labels}))
    with pytest.raises(DataError, match=r"data_batch_1(\.bin)?: picture 2 has label 10, out of range 0\.\.9"):
        cifar.read(folder, "train")


class Bomb:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_pickle_that_would_run_code_is_refused_and_not_run(tmp_path):
    (tmp_path / "batches.meta").write_bytes(as_python2({"label_names": NAMES}))
    (tmp_path / "data_batch_1").write_bytes(as_python2({"data": Bomb(tmp_path / "made"), "labels": [1]}))
    with pytest.raises(DataError, match="which pictures do not need and which could run code; refused"):
        cifar.read(tmp_path, "train")
    assert not (tmp_path / "made").exists()
    (tmp_path / "data_batch_1").write_bytes(as_python2([1]))
    with pytest.raises(DataError, match="a pickled list, not a dictionary"):
        cifar.read(tmp_path, "train")


def test_labels_that_are_no_integers_are_named(tmp_path):
    (tmp_path / "batches.meta").write_bytes(as_python2({"label_names": NAMES}))
    flat = content(1)[0].reshape(3, -1)
    for labels in (["a", "b", "c"], [1, 2, 10**30]):
        (tmp_path / "data_batch_1").write_bytes(as_python2({"data": flat, "labels": labels}))
        with pytest.raises(DataError, match="'labels' is not a list of 3 integers"):
            cifar.read(tmp_path, "train")
        read_batch.cache_clear()
