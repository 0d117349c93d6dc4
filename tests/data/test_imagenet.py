"""ImageNet's official archives, made by the test with a few pictures: truth is what was packed into them."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import make_data
import numpy as np
import pytest
from scipy.io import savemat

from detres.cli.prepare import main
from detres.data.prepare import imagenet
from detres.data.prepare.download import Archive, verify_images
from detres.data.prepare.imagenet import read_devkit, unpack_imagenet
from detres.data.readers import folders
from detres.errors import DataError, UserError

# number, WordNet id, words, children: the kit's table goes on with inner nodes
SYNSETS = [
    (1, "n00000009", "kit fox, Vulpes macrotis", 0),
    (2, "n00000003", "English setter", 0),
    (3, "n00000005", "crane", 0),
    (4, "n00000001", "animal", 3),
]
LABELS = [2, 1, 3, 2]
TRAIN = {"n00000003": 2, "n00000005": 1, "n00000009": 3}


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def image(path: Path, seed: int) -> bytes:
    make_data.write_image(path, 12, 10, seed=seed)
    return path.read_bytes()


def kit(labels: list[int]) -> bytes:
    table = np.zeros(
        len(SYNSETS), dtype=[(name, "O") for name in ("ILSVRC2012_ID", "WNID", "words", "num_children")]
    )
    for row, synset in enumerate(SYNSETS):
        table[row] = synset
    meta = io.BytesIO()
    savemat(meta, {"synsets": table})
    root = "ILSVRC2012_devkit_t12/data"
    files = {
        f"{root}/meta.mat": meta.getvalue(),
        f"{root}/ILSVRC2012_validation_ground_truth.txt": "".join(f"{label}\n" for label in labels).encode(),
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def archives(tmp_path) -> Path:
    folder = tmp_path / "downloads"
    folder.mkdir()
    (folder / imagenet.DEVKIT.name).write_bytes(kit(LABELS))
    val = {f"ILSVRC2012_val_{n:08d}.JPEG": image(tmp_path / "p.png", n) for n in range(1, 5)}
    (folder / imagenet.VAL.name).write_bytes(tar_of(val))
    inner = {}
    for wnid, count in TRAIN.items():
        inner[f"{wnid}.tar"] = tar_of(
            {f"{wnid}_{n}.JPEG": image(tmp_path / "p.png", n) for n in range(count)}
        )
    (folder / imagenet.TRAIN.name).write_bytes(tar_of(inner))
    return folder


def test_archives_become_class_folders(archives, tmp_path):
    root = tmp_path / "imagenet"
    unpack_imagenet(root, archives, checksums=False)
    train, _ = folders.read(root, "train")
    val, _ = folders.read(root, "val")
    assert train.class_names == val.class_names == ("English setter", "crane", "kit fox")
    assert np.bincount(train.labels).tolist() == [2, 1, 3]
    by_name = {Path(val.paths[i]).name: val.class_names[val.labels[i]] for i in range(4)}
    assert [by_name[f"ILSVRC2012_val_{n:08d}.JPEG"] for n in range(1, 5)] == [
        "English setter",
        "kit fox",
        "crane",
        "English setter",
    ]
    assert verify_images(root, {"train": 6, "val": 4}) == {"train": 3, "val": 3}
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.JPEG")}
    for name in (imagenet.TRAIN.name, imagenet.VAL.name, imagenet.DEVKIT.name):
        unpack_imagenet(
            root, archives, checksums=False
        )  # again, and without the archives: what is there stays
        (archives / name).unlink()
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.JPEG")} == before


def test_interrupted_unpacking_goes_on(archives, tmp_path):
    root = tmp_path / "imagenet"
    path = archives / imagenet.TRAIN.name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"is truncated or damaged|lacks classes"):
        unpack_imagenet(root, archives, checksums=False)
    path.write_bytes(whole)
    unpack_imagenet(root, archives, checksums=False)
    assert verify_images(root, {"train": 6, "val": 4}) == {"train": 3, "val": 3}
    assert not list(root.glob("train/.*"))


def test_label_out_of_range_and_other_kits(archives):
    path = archives / imagenet.DEVKIT.name
    path.write_bytes(kit([1, 4, 2, 2]))
    with pytest.raises(DataError, match=r"ground_truth\.txt:2: label '4' is out of range 1\.\.3"):
        read_devkit(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"devkit_t12\.tar\.gz is truncated or damaged"):
        read_devkit(path)
    with tarfile.open(path, "w:gz") as archive:
        archive.add(archives / imagenet.VAL.name, "data/meta.mat")
    with pytest.raises(DataError, match="are not both in it"):
        read_devkit(path)


def test_images_that_do_not_go_with_the_kit(archives, tmp_path):
    (archives / imagenet.DEVKIT.name).write_bytes(kit(LABELS[:3]))
    with pytest.raises(
        DataError, match=r"'ILSVRC2012_val_00000004\.JPEG' is none of the 3 pictures with a label"
    ):
        unpack_imagenet(tmp_path / "a", archives, checksums=False)
    (archives / imagenet.DEVKIT.name).write_bytes(kit([*LABELS, 1]))
    with pytest.raises(DataError, match=r"img_val\.tar holds 4 of 5 pictures: download it again"):
        unpack_imagenet(tmp_path / "b", archives, checksums=False)
    (archives / imagenet.DEVKIT.name).write_bytes(kit(LABELS))
    (archives / imagenet.TRAIN.name).write_bytes(tar_of({"n00000001.tar": b""}))
    with pytest.raises(DataError, match=r"'n00000001\.tar' is no tar of one of the 3 classes"):
        unpack_imagenet(tmp_path / "c", archives, checksums=False)
    assert not (tmp_path / "b" / "val").exists()


def test_checksums_and_missing_archives(archives, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"devkit_t12\.tar\.gz has MD5 .*, expected fa75699e"):
        unpack_imagenet(tmp_path / "a", archives)
    for name in ("TRAIN", "VAL", "DEVKIT"):
        archive = getattr(imagenet, name)
        digest = hashlib.md5((archives / archive.name).read_bytes()).hexdigest()
        monkeypatch.setattr(imagenet, name, Archive(archive.url, digest))
    unpack_imagenet(tmp_path / "a", archives)
    with pytest.raises(DataError, match="split 'train' has 6 pictures, it should have 1281167"):
        main(["imagenet", "--data", str(tmp_path / "a")])
    with pytest.raises(UserError, match=r"nowhere lacks ILSVRC2012_img_train\.tar.*downloaded by hand"):
        main(["imagenet", "--archives", str(tmp_path / "nowhere"), "--out", str(tmp_path / "b")])


def test_cifar10_is_verified(tmp_path, real_data, capsys):
    main(["cifar10", "--data", str(real_data / "cifar10.zip")])
    assert "train: 50000 pictures, 10 classes: complete" in capsys.readouterr().out
    with pytest.raises(UserError, match="is not there; without --data it is downloaded"):
        main(["cifar10", "--data", str(tmp_path)])


@pytest.mark.parametrize(
    "name", ["cifar-10-batches-bin/data_batch_1.bin", "cifar-10-batches-py/data_batch_1", "train/ant/1.png"]
)
def test_cifar10_is_verified_in_whatever_form_it_lies(tmp_path, name):
    """Each form is read, and what it lacks is told of that form."""
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    if path.suffix == ".png":
        make_data.write_image(path, 32, 32)
        told = r"split 'train' has 1 pictures, it should have 50000"
    else:
        path.write_bytes(bytes(3073))
        told = r"batches\.meta is not there"
    with pytest.raises(DataError, match=told):
        main(["cifar10", "--data", str(tmp_path)])
