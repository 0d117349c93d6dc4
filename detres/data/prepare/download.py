"""Downloads and unpacks public data sets, and verifies those that are there.

Archives are verified by their MD5 sums where these are known, data sets by their numbers of images.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detres.console import progress
from detres.data.formats import read_annotations
from detres.data.readers import cifar, folders
from detres.errors import DataError, UserError
from detres.files import atomic_path

BLOCK = 1 << 20
TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Archive:
    """One file to download.

    Attributes:
        url: Where it is.
        md5: Its checksum; None: not known.
        inside: The folder in the archive to unpack; empty: everything.
    """

    url: str
    md5: str | None = None
    inside: str = ""

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Part:
    """One part of a public data set.

    Attributes:
        archives: What to download for it.
        folder: Where it lies, relative to the data set's folder.
        counts: Images by split.
    """

    archives: tuple[Archive, ...]
    folder: str
    counts: dict[str, int]


def prepare(
    part: Part, root: Path, *, unpack_into: str = "", download_allowed: bool = True, images: bool = False
) -> dict[str, int]:
    """Make sure that a part of a data set is under `root` and complete.

    Args:
        part: The part.
        root: The data set's folder.
        unpack_into: Where its archives are unpacked, relative to `root`.
        download_allowed: False: only verify.
        images: The data is for classification.

    Returns:
        Objects (or classes) by split.

    Raises:
        UserError: It is missing and may not or cannot be downloaded, or a checksum or a number of images is wrong.
    """
    place = root / part.folder
    if not (_has_images(place) if images else _has_annotations(place)):
        if not download_allowed:
            raise UserError(f"{place} is not there; without --data it is downloaded")
        for archive in part.archives:
            unpack(fetch(archive, root / "downloads"), root / unpack_into, inside=archive.inside)
    return verify_images(place, part.counts) if images else verify(place, part.counts)


def fetch(archive: Archive, folder: Path) -> Path:
    """Download an archive into `folder` unless it is there; its checksum is verified in both cases."""
    target = folder / archive.name
    if not target.is_file():
        with atomic_path(target) as beside:
            _download(archive.url, beside)
            check_sum(beside, archive)
    else:
        check_sum(target, archive)
    return target


def unpack(archive: Path, folder: Path, *, inside: str = "") -> None:
    """Unpack a .tar or .zip; the standard library's filter refuses members outside of `folder`.

    Args:
        archive: The file.
        folder: Where to; made if missing.
        inside: The folder in the archive whose content is unpacked; empty: everything.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        try:
            if zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as content:
                    content.extractall(beside)
            else:
                if not hasattr(tarfile, "data_filter"):
                    raise UserError(f"unpacking {archive} safely needs Python 3.10.12, 3.11.4 or newer")
                with tarfile.open(archive) as content:
                    content.extractall(beside, filter="data")
        except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
            raise DataError(f"{archive} cannot be unpacked ({error}): remove it and start again") from error
        _merge(Path(beside) / inside, folder)


def verify(directory: Path, counts: dict[str, int]) -> dict[str, int]:
    """Read each split and compare its number of images.

    Returns:
        Objects by split.

    Raises:
        UserError: A split has a wrong number of images, or what a reader calls an error.
    """
    objects = {}
    for split, expected in counts.items():
        annotations, _ = read_annotations(directory, split)
        if len(annotations) != expected:
            raise DataError(
                f"{directory}: split '{split}' has {len(annotations)} pictures, it should have {expected}"
            )
        objects[split] = len(annotations.boxes)
    return objects


def verify_images(place: Path, counts: dict[str, int]) -> dict[str, int]:
    """Compare the number of images of each split in CIFAR-10's files, class folders or an archive of those.

    Returns:
        Classes by split.

    Raises:
        UserError: A split has a wrong number of images, or what a reader calls an error.
    """
    classes = {}
    batches = cifar.find_folder(place)
    for split, expected in counts.items():
        images = cifar.read(batches, split) if batches else folders.read(place, split)[0]
        if len(images) != expected:
            raise DataError(f"{place}: split '{split}' has {len(images)} pictures, it should have {expected}")
        classes[split] = len(np.unique(images.labels))
    return classes


def _has_annotations(place: Path) -> bool:
    return (place / "Annotations").is_dir() or (place / "annotations").is_dir()


def _has_images(place: Path) -> bool:
    return place.is_file() or cifar.find_folder(place) is not None or (place / "train").is_dir()


def _download(url: str, target: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, open(target, "wb") as file:
            size = int(response.headers.get("Content-Length") or 0)
            blocks = iter(lambda: response.read(BLOCK), b"")
            for block in progress(blocks, f"{target.suffix[1:]} (MiB)", total=-(-size // BLOCK) or None):
                file.write(block)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        hint = f"download it elsewhere into {target.parent} and start again"
        raise UserError(f"{url} cannot be downloaded ({reason}): {hint}") from error


def check_sum(path: Path, archive: Archive) -> None:
    """Compare a file with the MD5 sum of the archive, if that is known.

    Raises:
        DataError: They differ.
    """
    if archive.md5 is None:
        return
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    if digest.hexdigest() != archive.md5:
        where = path.with_name(archive.name)
        raise DataError(
            f"{where} has MD5 {digest.hexdigest()}, expected {archive.md5}: remove it and start again"
        )


def _merge(source: Path, target: Path) -> None:
    """Move the content of `source` into `target`; folders that both have are merged."""
    if not source.is_dir():
        raise DataError(f"the archive has no folder '{source.name}'")
    for path in source.iterdir():
        if path.is_dir() and (target / path.name).is_dir():
            _merge(path, target / path.name)
        else:
            shutil.move(path, target / path.name)
