"""Written sets: truth is what went in, read again by the package's readers (which have truths of their own)."""

from __future__ import annotations

import json

import make_data
import numpy as np
import pytest

from detres.cli.convert_data import main
from detres.data.decoding import read_image
from detres.data.formats import find_format, list_splits, read_annotations
from detres.data.shapes import shapes_annotations
from detres.data.writers import WRITERS
from detres.errors import DataError, UserError


def same_objects(first, second, atol):
    assert len(first) == len(second)
    order = {second.image_ids[index]: index for index in range(len(second))}
    for index in range(len(first)):
        other = order.get(first.image_ids[index], index)
        rows, other_rows = first.objects(index), second.objects(other)
        np.testing.assert_allclose(first.boxes[rows], second.boxes[other_rows], atol=atol)
        names = [first.class_names[label] for label in first.labels[rows]]
        assert names == [second.class_names[label] for label in second.labels[other_rows]]
        assert first.sizes[index].tolist() == second.sizes[other].tolist()


@pytest.mark.parametrize("name", ["coco", "voc", "yolo"])
def test_drawn_images_on_disk(tmp_path, name):
    """The real readers give back the drawn scenes, the pictures pixel for pixel."""
    drawn = shapes_annotations("test", 12, seed=1)
    report = WRITERS[name](drawn, tmp_path, "test")
    assert find_format(tmp_path) == name
    again, read_report = read_annotations(tmp_path, "test")
    same_objects(drawn, again, atol=0.002)
    assert read_report.counts() == {}
    assert set(again.class_names) <= set(drawn.class_names)
    np.testing.assert_array_equal(read_image(again.paths[3]), read_image(drawn.paths[3]))
    assert report.counts() == ({"picture ids numbered": 1} if name == "coco" else {})


def test_coco_keeps_ids_areas_and_flags(tmp_path):
    make_data.coco(tmp_path / "in")
    first, _ = read_annotations(tmp_path / "in", "val")
    WRITERS["coco"](first, tmp_path / "out", "val")
    second, _ = read_annotations(tmp_path / "out", "val")
    same_objects(first, second, atol=0)
    assert second.category_ids == (3, 7)
    assert second.areas.tolist() == first.areas.tolist()
    assert second.crowd.tolist() == first.crowd.tolist()
    assert [second.image_ids[i] for i in range(2)] == ["11", "5"]


def test_voc_keeps_difficult_and_turns_crowds_into_it(tmp_path):
    make_data.coco(tmp_path / "in")
    first, _ = read_annotations(tmp_path / "in", "val")
    report = WRITERS["voc"](first, tmp_path / "out", "val", images="link")
    second, _ = read_annotations(tmp_path / "out", "val")
    assert report.counts() == {"crowd written as difficult": 1}
    assert second.difficult.tolist() == [False, False, True]
    assert (tmp_path / "out" / "JPEGImages" / "a.png").is_symlink()
    text = (tmp_path / "out" / "Annotations" / "a.xml").read_text()
    assert "<xmin>11</xmin>" in text
    assert "<xmax>40</xmax>" in text
    WRITERS["coco"](second, tmp_path / "back", "val")
    assert read_annotations(tmp_path / "back", "val")[0].difficult.tolist() == [False, False, True]


def test_yolo_adds_splits_and_refuses_other_names(tmp_path):
    make_data.coco(tmp_path / "in")
    first, _ = read_annotations(tmp_path / "in", "val")
    report = WRITERS["yolo"](first, tmp_path / "out", "val")
    assert report.counts() == {"crowd left out": 1}
    WRITERS["yolo"](first, tmp_path / "out", "test")
    assert list_splits(tmp_path / "out") == ["val", "test"]
    with pytest.raises(DataError, match="has other class names"):
        WRITERS["yolo"](shapes_annotations("test", 1), tmp_path / "out", "train")


def test_yolo_keeps_names_that_yaml_takes_for_values(tmp_path):
    names = ["no", "off", "010", "1.10"]
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    make_data.coco(tmp_path / "in", annotations=[], categories=categories)
    first, _ = read_annotations(tmp_path / "in", "val")
    WRITERS["yolo"](first, tmp_path / "out", "val")
    assert list(read_annotations(tmp_path / "out", "val")[0].class_names) == names
    described = tmp_path / "out" / "data.yaml"
    described.write_text("nc: 4\nnames: [no, off, 010, 1.10]\n")  # a person's hand quotes nothing
    WRITERS["yolo"](first, tmp_path / "out", "test")
    assert list(read_annotations(tmp_path / "out", "test")[0].class_names) == names
    assert "nc: 4\n" in described.read_text()


@pytest.mark.parametrize("name", ["coco", "voc", "yolo"])
def test_boxes_on_the_unrotated_image_get_a_image_without_orientation(tmp_path, name):
    make_data.write_image(tmp_path / "in" / "val" / "a.png", 100, 80, exif_orientation=6)
    make_data.coco(tmp_path / "in")
    first, _ = read_annotations(tmp_path / "in", "val")
    WRITERS[name](first, tmp_path / "out", "val")
    second, _ = read_annotations(tmp_path / "out", "val")
    assert second.sizes.tolist() == [[80, 100], [80, 100]]
    assert read_image(second.paths[0]).shape == (80, 100, 3)


def test_names_that_would_collide(tmp_path):
    make_data.yolo(tmp_path, {"a": "", "b": ""})
    (tmp_path / "images" / "train" / "b.png").rename(tmp_path / "images" / "train" / "a.jpg")
    annotations, _ = read_annotations(tmp_path, "train")
    WRITERS["voc"](annotations, tmp_path / "out", "train")
    assert len(read_annotations(tmp_path / "out", "train")[0]) == 2


def test_tool_converts_all_splits(tmp_path, capsys):
    text = make_data.xml([("dog", (1, 1, 9, 9)), ("dog", (5, 5, 5, 5))])
    make_data.voc(tmp_path / "in", {"train": {"a": text}, "test": {"b": text}})
    arguments = ["--data", str(tmp_path / "in"), "--to", "coco", "--out", str(tmp_path / "out"), "--quiet"]
    main(arguments)
    printed = capsys.readouterr()
    assert "train: 1 pictures, 1 objects" in printed.out
    assert "zero-size box: 1" in printed.err
    assert list_splits(tmp_path / "out") == ["test", "train"]
    content = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())
    assert content["annotations"][0]["bbox"] == [0, 0, 9, 9]
    with pytest.raises(UserError, match="is not empty"):
        main(arguments)


def test_bccd_round_trip(real_data, tmp_path):
    first, _ = read_annotations(real_data / "bccd", "test")
    WRITERS["yolo"](first, tmp_path, "test", images="link")
    second, _ = read_annotations(tmp_path, "test")
    same_objects(first, second, atol=0.001)


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("images", ["copy", "link", "none"])
@pytest.mark.parametrize("place", ["in", "./in/../in", "alias", "in/below", "by_folder", "by_file"])
def test_the_data_set_that_is_read_is_never_written_into(tmp_path, monkeypatch, images, place):
    monkeypatch.chdir(tmp_path)
    make_data.coco(tmp_path / "in")
    (tmp_path / "alias").symlink_to("in")
    for name, link, target in (("by_folder", "val", "in/val"), ("by_file", "annotations", "in/annotations")):
        (tmp_path / name).mkdir()
        (tmp_path / name / link).symlink_to(tmp_path / target)
    before = contents(tmp_path / "in")
    with pytest.raises(UserError, match=r"that is read|is a link to"):
        main(["--data", f"{tmp_path}/in", "--to", "coco", "--out", place, "--images", images, "--overwrite"])
    assert contents(tmp_path / "in") == before
    assert not any(path.is_symlink() for path in (tmp_path / "in").rglob("*"))


@pytest.mark.parametrize("name", ["coco", "voc", "yolo"])
@pytest.mark.parametrize("images", ["copy", "link"])
def test_links_in_the_way_are_replaced_and_not_followed(tmp_path, name, images):
    for place, shade in (("first", 3), ("second", 4)):
        make_data.write_image(tmp_path / place / "val" / "a.png", seed=shade)
        make_data.coco(tmp_path / place)
    before = contents(tmp_path / "first")
    out = ["--to", name, "--out", str(tmp_path / "out"), "--quiet"]
    main(["--data", str(tmp_path / "first"), *out, "--images", "link"])
    main(["--data", str(tmp_path / "second"), *out, "--images", images, "--overwrite"])
    assert contents(tmp_path / "first") == before
    written, _ = read_annotations(tmp_path / "out", "val")
    source = str(tmp_path / "second" / "val" / "a.png")
    path = next(written.paths[i] for i in range(2) if "a.png" in written.paths[i])
    np.testing.assert_array_equal(read_image(path), read_image(source))


@pytest.mark.parametrize("apart", [False, True])
def test_voc_keeps_splits_apart_that_share_names(tmp_path, capsys, apart):
    for number, split in enumerate(("train", "val")):
        for letter in "ab":
            make_data.write_image(tmp_path / "in" / split / f"{letter}.png", seed=10 * number + ord(letter))
        boxes = [{"id": 1, "image_id": 11, "category_id": 3, "bbox": [10 + number, 5, 20, 20]}]
        make_data.coco(tmp_path / "in", split, annotations=boxes)
    arguments = ["--data", str(tmp_path / "in"), "--to", "voc", "--out", str(tmp_path / "out"), "--overwrite"]
    for splits in (["--split", "train"], ["--split", "val"], ["--split", "val"]) if apart else ([],):
        main([*arguments, *splits])
    assert "picture renamed: 2" in capsys.readouterr().out
    assert len(list((tmp_path / "out" / "JPEGImages").iterdir())) == 4
    for split in ("train", "val"):
        first, _ = read_annotations(tmp_path / "in", split)
        second, _ = read_annotations(tmp_path / "out", split)
        same_objects(first, second, atol=0)
        for index in range(2):
            np.testing.assert_array_equal(read_image(first.paths[index]), read_image(second.paths[index]))


def test_voc_shares_images_that_two_splits_have(tmp_path):
    text = make_data.xml([("dog", (1, 1, 9, 9))])
    make_data.voc(tmp_path / "in", {"train": {"a": text}, "trainval": {"a": text}})
    main(["--data", str(tmp_path / "in"), "--to", "voc", "--out", str(tmp_path / "out"), "--quiet"])
    assert [path.name for path in (tmp_path / "out" / "JPEGImages").iterdir()] == ["a.png"]


def test_voc_takes_another_suffix_for_the_same_name(tmp_path):
    for split, suffix in (("train", "png"), ("val", "jpg")):
        image = {"id": 1, "file_name": f"7.{suffix}", "width": 100, "height": 80}
        make_data.coco(tmp_path / "in", split, images=[image], annotations=[])
    main(["--data", str(tmp_path / "in"), "--to", "voc", "--out", str(tmp_path / "out"), "--quiet"])
    names = sorted(path.name for path in (tmp_path / "out" / "JPEGImages").iterdir())
    assert names == ["7.png", "val_7.jpg"]
    assert len(list((tmp_path / "out" / "Annotations").iterdir())) == 2


def test_yolo_refuses_images_that_would_join_a_split(tmp_path):
    make_data.coco(tmp_path / "in")
    stranger = make_data.write_image(tmp_path / "out" / "images" / "val" / "z.png")
    with pytest.raises(UserError, match=r"holds other pictures, .*: z\.png"):
        main(["--data", str(tmp_path / "in"), "--to", "yolo", "--out", str(tmp_path / "out"), "--overwrite"])
    assert list(contents(tmp_path / "out")) == [stranger]
