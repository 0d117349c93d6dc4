"""Data at fault ends a training with status 2 and one clear line: what, where, what would be right.

The list is that of the issue from which the tools were built; readers' own tests go through more cases of each.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from whole_runs import assert_one_line, change, train

from detres.data.decoding import read_image
from detres.data.drawing import write_image

Spoil = Callable[[Path], None]


def change_coco(edit: Callable[[dict], None]) -> Spoil:
    """Edit the training annotations."""

    def spoil(scenes: Path) -> None:
        path = scenes / "coco" / "annotations" / "instances_train.json"
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))

    return spoil


def first_xml(scenes: Path) -> Path:
    return next(
        path
        for path in sorted((scenes / "voc" / "Annotations").glob("*.xml"))
        if "<object>" in path.read_text()
    )


def first_image(scenes: Path) -> Path:
    return min((scenes / "coco" / "train").iterdir())


def remove_image(scenes: Path) -> None:
    first_image(scenes).unlink()


def truncate_jpeg(scenes: Path) -> None:
    """A picture becomes a JPEG that lacks its last 20 bytes."""
    image = first_image(scenes)
    jpeg = image.with_suffix(".jpg")
    write_image(jpeg, read_image(image))
    jpeg.write_bytes(jpeg.read_bytes()[:-20])
    image.unlink()
    change(scenes / "coco" / "annotations" / "instances_train.json", image.name, jpeg.name)


def change_size(scenes: Path) -> None:
    image = first_image(scenes)
    write_image(image, read_image(image)[:200, :200])


def truncate_json(scenes: Path) -> None:
    path = scenes / "coco" / "annotations" / "instances_train.json"
    path.write_text(path.read_text()[:-50])


def rename_class_of_validation(scenes: Path) -> None:
    change(scenes / "coco" / "annotations" / "instances_val.json", '"star"', '"stars"')


def set_box(content: dict, box: list[float]) -> None:
    content["annotations"][0]["bbox"] = box


def as_corners(content: dict) -> None:
    for row in content["annotations"]:
        x, y, width, height = row["bbox"]
        row["bbox"] = [x, y, x + width, y + height]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (remove_image, ["missing picture", ".png"]),
        (change_coco(lambda c: set_box(c, [float("nan"), 0, 9, 9])), ["annotation 1", "not finite"]),
        (change_coco(as_corners), ["boxes look like corners", "COCO wants [x, y, width, height]"]),
        (change_coco(lambda c: c["annotations"][0].update(category_id=77)), ["annotation 1", "category 77"]),
        (change_coco(lambda c: c["images"][1].update(id=c["images"][0]["id"])), ["duplicate image id"]),
        (change_coco(lambda c: c.update(images=[], annotations=[])), ["empty data set", "no picture"]),
        (truncate_json, ["instances_train.json, line ", "malformed JSON"]),
        (rename_class_of_validation, ["class names differ", "star", "stars"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_coco(spoil, words, scenes, recipe, tmp_path, capsys):
    spoil(scenes)
    ended = train(capsys, recipe, scenes / "coco", tmp_path / "run")
    if (
        "duplicate image id" in words
    ):  # the other picture's objects are without a picture then: more than one line
        assert ended.status == 2
        assert words[0] in ended.err
    else:
        assert_one_line(ended, *words)
    assert not (tmp_path / "run").exists()


def entity_bomb(scenes: Path) -> None:
    change(first_xml(scenes), "<annotation>", '<!DOCTYPE a [<!ENTITY e "boom">]>\n<annotation>')


def cut_xml(scenes: Path) -> None:
    path = first_xml(scenes)
    path.write_text(path.read_text()[:-40])


def sizes_for_corners(scenes: Path) -> None:
    """Width and height stand where xmax and ymax belong."""
    for path in (scenes / "voc" / "Annotations").glob("*.xml"):
        text = re.sub(
            r"<xmin>(.*?)</xmin>\s*<ymin>(.*?)</ymin>\s*<xmax>(.*?)</xmax>\s*<ymax>(.*?)</ymax>",
            lambda m: (
                f"<xmin>{200 + float(m[1])}</xmin><ymin>{200 + float(m[2])}</ymin>"
                f"<xmax>{float(m[3]) - float(m[1])}</xmax><ymax>{float(m[4]) - float(m[2])}</ymax>"
            ),
            path.read_text(),
        )
        path.write_text(text)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda scenes: first_image_of_voc(scenes).unlink(), ["missing picture", ".xml"]),
        (cut_xml, [".xml", "line "]),
        (entity_bomb, [".xml", "line ", "entities are not read"]),
        (sizes_for_corners, ["look like x, y, width, height"]),
        (lambda scenes: (scenes / "voc/ImageSets/Main/train.txt").write_text(""), ["train"]),
    ],
    ids=["missing picture", "malformed xml", "entities", "xywh", "empty"],
)
def test_voc(spoil, words, scenes, recipe, tmp_path, capsys):
    spoil(scenes)
    assert_one_line(train(capsys, recipe, scenes / "voc", tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


def first_image_of_voc(scenes: Path) -> Path:
    return scenes / "voc" / "JPEGImages" / f"{first_xml(scenes).stem}.png"


def test_boxes_of_no_size_and_outside_are_dropped_with_count(scenes, recipe, tmp_path, capsys):
    def edit(content: dict) -> None:
        content["annotations"][0]["bbox"] = [5, 5, 0, 0]
        content["annotations"][1]["bbox"] = [1000, 5, 20, 20]
        content["annotations"][2]["bbox"][0] -= 1000

    change_coco(edit)(scenes)
    assert train(capsys, recipe, scenes / "coco", tmp_path / "run").status == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "data: 1 x zero-size box: " in log
    assert "annotation 1\n" in log
    assert "data: 2 x box outside the picture: " in log


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncate_jpeg, [".jpg is truncated"]),
        (change_size, [".png is 200 x 200 (width x height), its annotation says"]),
    ],
)
def test_a_bad_image_that_training_finds(spoil, words, scenes, recipe, tmp_path, capsys):
    """Only decoding finds it; the steps before it are logged."""
    spoil(scenes)
    assert_one_line(train(capsys, recipe, scenes / "coco", tmp_path / "run"), *words)


def test_a_bad_image_that_a_worker_finds(scenes, recipe, tmp_path, capsys):
    """The same line, of training pictures and of validation pictures."""
    more = ("--set", "train.workers=1")
    image = min((scenes / "coco" / "val").iterdir())
    write_image(image, read_image(image)[:99, :99])
    ended = train(capsys, recipe, scenes / "coco", tmp_path / "run", *more)
    assert_one_line(ended, f"picture {image} is 99 x 99")
    change_size(scenes)
    ended = train(capsys, recipe, scenes / "coco", tmp_path / "other", *more)
    assert_one_line(ended, f"picture {first_image(scenes)} is 200 x 200")


def test_two_formats_in_one_folder(scenes, recipe, tmp_path, capsys):
    shutil.copytree(scenes / "yolo", scenes / "voc", dirs_exist_ok=True)
    ended = train(capsys, recipe, scenes / "voc", tmp_path / "run")
    assert_one_line(ended, "voc and yolo", "--format voc or --format yolo")
    assert train(capsys, recipe, scenes / "voc", tmp_path / "run", "--format", "yolo").status == 0
