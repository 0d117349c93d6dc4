"""Unpacks the official archives of ImageNet's classification data (ILSVRC2012) into class folders.

Russakovsky et al. 2015. The archives need an account at https://www.image-net.org and are downloaded by hand: a tar of
1,000 tars, one a class; a flat tar of validation images; a development kit with their classes as numbers.
"""

from __future__ import annotations

import io
import re
import shutil
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from detres.console import progress
from detres.data.prepare.download import Archive, check_sum
from detres.data.readers.folders import WORDS
from detres.errors import DataError, UserError, listed
from detres.files import write_text

TRAIN = Archive("ILSVRC2012_img_train.tar", "1d675b47d978889d74fa0da5fadfb00e")
VAL = Archive("ILSVRC2012_img_val.tar", "29b22e2961454d5413ddabcf34fc5622")
DEVKIT = Archive("ILSVRC2012_devkit_t12.tar.gz", "fa75699e90414af021442c21a62c3abf")
COUNTS = {"train": 1_281_167, "val": 50_000}
META = "data/meta.mat"
GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"


@dataclass(frozen=True)
class Devkit:
    """The content of the development kit.

    Attributes:
        words: Synonyms by WordNet id, of the classes in order of their numbers (ILSVRC2012_ID, from 1).
        labels: WordNet id of each validation image, in order of their numbers.
    """

    words: dict[str, str]
    labels: list[str]


def unpack_imagenet(root: Path, archives: Path, *, checksums: bool = True) -> None:
    """Unpack the archives into `root/train/<wnid>/`, `root/val/<wnid>/`, `root/words.txt`; existing classes are kept.

    Args:
        root: The data set's folder, made where missing.
        archives: Folder of the three archives.
        checksums: Compare their MD5 sums first (minutes for the training images).

    Raises:
        UserError: An archive is missing or damaged, or has unexpected content.
    """
    missing = [archive.name for archive in (TRAIN, VAL, DEVKIT) if not (archives / archive.name).is_file()]
    if missing and (root / "train").is_dir() and (root / "val").is_dir():
        return  # unpacked earlier, and the archives were removed
    if missing:
        raise UserError(
            f"{archives} lacks {listed(missing)}: ImageNet is downloaded by hand, with an account at"
            " https://www.image-net.org (ILSVRC2012, tasks 1 and 2)"
        )
    devkit = read_devkit(archives / DEVKIT.name)
    if (root / "val").is_dir() and all((root / "train" / wnid).is_dir() for wnid in devkit.words):
        return
    for archive in (DEVKIT, VAL, TRAIN) if checksums else ():
        check_sum(archives / archive.name, archive)
    unpack_val(archives / VAL.name, root / "val", devkit)
    lines = "".join(f"{wnid}\t{devkit.words[wnid]}\n" for wnid in sorted(devkit.words))
    write_text(root / WORDS, lines)
    unpack_train(archives / TRAIN.name, root / "train", devkit)


def read_devkit(path: Path) -> Devkit:
    """The classes and the validation labels of the development kit's archive.

    Raises:
        DataError: The archive is damaged or lacks a file, or a label is out of range.
    """
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                for name in (META, GROUND_TRUTH):
                    file = archive.extractfile(member) if member.name.endswith(name) else None
                    if file:
                        files[name] = file.read()
    except (OSError, tarfile.TarError, EOFError) as error:
        raise DataError(f"{path} is truncated or damaged ({error}): download it again") from error
    if len(files) < 2:
        raise DataError(
            f"{path}: {META} and {GROUND_TRUTH} are not both in it; is it the kit of tasks 1 and 2?"
        )
    words = _read_meta(files[META], path)
    numbers = list(words)
    labels = []
    for line, text in enumerate(files[GROUND_TRUTH].decode("ascii", errors="replace").split(), start=1):
        if not text.isdigit() or not 1 <= int(text) <= len(numbers):
            raise DataError(f"{path}!{GROUND_TRUTH}:{line}: label '{text}' is out of range 1..{len(numbers)}")
        labels.append(numbers[int(text) - 1])
    return Devkit(words, labels)


def unpack_val(archive: Path, folder: Path, devkit: Devkit) -> None:
    """Unpack the validation images into class folders, all or none, unless `folder` exists.

    Raises:
        DataError: The archive is damaged, or its images are not those with a label in the kit.
    """
    if folder.is_dir():
        return
    beside = _make_empty(folder.with_name(".val"))
    numbers = set()
    with _open_tar(archive) as content:
        for name, file in progress(_images(content, archive), "val", total=len(devkit.labels)):
            number = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name)
            if number is None or not 1 <= int(number[1]) <= len(devkit.labels):
                raise DataError(
                    f"{archive}: '{name}' is none of the {len(devkit.labels)} pictures with a label"
                )
            numbers.add(int(number[1]))
            _write(file, beside / devkit.labels[int(number[1]) - 1] / name)
    if len(numbers) < len(devkit.labels):
        raise DataError(f"{archive} holds {len(numbers)} of {len(devkit.labels)} pictures: download it again")
    beside.rename(folder)


def unpack_train(archive: Path, folder: Path, devkit: Devkit) -> None:
    """Unpack a tar of tars, one for each class, into class folders, each completely or not; existing ones are kept.

    Raises:
        DataError: The archive is damaged, or holds other classes than the kit.
    """
    classes = set()
    with _open_tar(archive) as content:
        for name, file in progress(_files(content, archive), "classes of train", total=len(devkit.words)):
            wnid = name.removesuffix(".tar")
            if wnid not in devkit.words or not name.endswith(".tar"):
                raise DataError(f"{archive}: '{name}' is no tar of one of the {len(devkit.words)} classes")
            classes.add(wnid)
            if (folder / wnid).is_dir():
                continue
            beside = _make_empty(folder / f".{wnid}")
            with _open_tar(archive, file) as images:
                for image, bytes_of in _images(images, archive):
                    _write(bytes_of, beside / image)
            beside.rename(folder / wnid)
    lacking = sorted(set(devkit.words) - classes)
    if lacking:
        raise DataError(f"{archive} lacks classes {listed(lacking, 4)}: download it again")


def _read_meta(content: bytes, path: Path) -> dict[str, str]:
    """Words by WordNet id, in order of ILSVRC2012_ID, of the classes that have no children."""
    from scipy.io import loadmat  # comes with albumentations

    try:
        rows = np.atleast_1d(loadmat(io.BytesIO(content), squeeze_me=True)["synsets"])
        leaves = [row for row in rows if int(row["num_children"]) == 0]
        by_number = {int(row["ILSVRC2012_ID"]): (str(row["WNID"]), str(row["words"])) for row in leaves}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path}!{META} is not the kit's table of classes ({error})") from error
    if sorted(by_number) != list(range(1, len(by_number) + 1)):
        raise DataError(f"{path}!{META}: the classes are not numbered from 1")
    return dict(by_number[number] for number in sorted(by_number))


def _open_tar(archive: Path, file: IO[bytes] | None = None) -> tarfile.TarFile:
    try:
        return tarfile.open(archive if file is None else None, "r:", fileobj=file)
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{archive} is truncated or damaged ({error}): download it again") from error


def _files(content: tarfile.TarFile, archive: Path) -> Iterable[tuple[str, IO[bytes]]]:
    """Base name and content of each file, whatever folder of the archive it is in."""
    try:
        for member in content:
            file = content.extractfile(member) if member.isfile() else None
            if file is not None:
                yield Path(member.name).name, file
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{archive} is truncated or damaged ({error}): download it again") from error


def _images(content: tarfile.TarFile, archive: Path) -> Iterable[tuple[str, IO[bytes]]]:
    return ((name, file) for name, file in _files(content, archive) if name.endswith(".JPEG"))


def _make_empty(folder: Path) -> Path:
    """Make an empty folder; what an interrupted run left in it is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _write(file: IO[bytes], path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as target:
        shutil.copyfileobj(file, target)
