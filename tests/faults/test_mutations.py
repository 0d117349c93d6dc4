"""Thousands of damaged annotation files, archives and images: each is read or is one error, in no time."""

from __future__ import annotations

import io
import json
import random
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from detres.data.decoding import read_header, read_image
from detres.data.formats import list_splits, scan_annotations
from detres.data.readers import folders
from detres.data.shapes import shapes_annotations
from detres.data.writers import WRITERS
from detres.errors import UserError
from detres.evaluation.results_files import read_coco_results
from detres.strict_yaml import override_document, read_document

COUNT = 1000  # of each kind
TEXTS = [
    b"",
    b"\x00",
    b"\xff",
    b"-1",
    b"1e999",
    b"9" * 400,
    b"9" * 5000,
    b"[" * 3000,
    b"null",
    b'"',
    b"{",
    b"\n",
]
TEXTS += [
    b"&a ",
    b"*a",
    b"../../",
    b"NaN",
    b"Infinity",
    b"<a>",
    b"]",
    b"}",
    b":",
    b"\xf0\x9f\x90\x95",
    b"0.5",
    b"\t",
]


def mutated(content: bytes, chance: random.Random) -> bytes:
    """One to three changes: a flipped byte, a cut, a piece that is doubled, an inserted text, another number."""
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(content) + 1)
        end = min(len(content), place + chance.choice((1, 2, 10, 100)))
        kind = chance.randrange(5)
        if kind == 0:
            content = (
                content[:place]
                + bytes(chance.randrange(256) for _ in content[place : place + 1])
                + content[end:]
            )
        elif kind == 1:
            content = content[:place] if chance.random() < 0.3 else content[:place] + content[end:]
        elif kind == 2:
            content = content[:end] + content[place:]
        else:
            end = place if kind == 3 else end
            content = content[:place] + chance.choice(TEXTS) + content[end:]
    return content


def run(name: str, path: Path, read, count: int = COUNT) -> None:
    """Read the file at `path` with `count` mutations; the figures are printed."""
    whole, chance, ends, longest = path.read_bytes(), random.Random(name), Counter(), 0.0
    for number in range(count):
        content = mutated(whole, chance)
        path.write_bytes(content)
        start = time.perf_counter()
        try:
            read()
            ends["read"] += 1
        except UserError:
            ends["refused"] += 1
        except Exception as error:
            kept = path.with_suffix(f".{number}.kept")
            kept.write_bytes(content)
            raise AssertionError(f"{name}: mutation {number} (in {kept}): {error!r}") from error
        longest = max(longest, time.perf_counter() - start)
    path.write_bytes(whole)
    print(f"{name}: {dict(ends)}, longest {longest:.2f} s")
    assert longest < 10


@pytest.mark.slow
@pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
def test_annotations(tmp_path, form):
    WRITERS[form](shapes_annotations("test", 3), tmp_path, "test")
    files = {
        "coco": ["annotations/instances_test.json"],
        "voc": ["Annotations/*.xml", "ImageSets/Main/test.txt"],
        "yolo": ["labels/test/*.txt", "data.yaml"],
    }[form]

    def read():
        for split in list_splits(tmp_path):
            scan_annotations(tmp_path, split)

    for pattern in files:
        run(f"{form} {pattern}", next(tmp_path.glob(pattern)), read)


@pytest.mark.slow
def test_results_and_configurations(tmp_path):
    truth = shapes_annotations("test", 3)
    ids = [truth.image_ids[index] for index in range(3)]
    rows = [{"image_id": name, "category_id": 1, "bbox": [1, 2, 3.5, 4], "score": 0.5} for name in ids]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(rows))
    run("results", path, lambda: read_coco_results(path, truth))
    path = tmp_path / "config.yaml"
    path.write_text("train: {lr: 1e-3, milestones: [1, 2]}\nmodel:\n  network: {name: resnet50}\n")
    run("configuration", path, lambda: read_document(path))
    path = tmp_path / "override"
    path.write_text("train.lr=[1, {a: 2}]")
    run("--set", path, lambda: override_document(path.read_bytes().decode(errors="replace")))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives(tmp_path, kind):
    image = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 10, 90)).save(image, "PNG")
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(image.getvalue())
    path = Path(shutil.make_archive(str(tmp_path / "packed"), kind, tmp_path / "tree"))
    numbers = iter(range(10 * COUNT))

    def read():
        copy = path.with_name(f"{next(numbers)}.{kind}")  # archives stay open for the life of a process
        shutil.copyfile(path, copy)
        try:
            labels, _ = folders.read(copy, None)
            for index in range(len(labels)):
                read_image(labels.paths[index])
        finally:
            copy.unlink()

    run(kind, path, read)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["jpeg", "png", "bmp", "webp", "tiff", "gif", "avif", "jpeg2000", "ppm"])
def test_images(tmp_path, form):
    path = tmp_path / f"image.{form}"
    Image.effect_noise((60, 40), 90).convert("RGB").save(path, form)

    def read():
        for call in (read_header, read_image):
            call(path)

    run(form, path, read, COUNT // 2)
