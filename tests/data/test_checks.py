"""The check of a data set: truth is the defects put in by hand, and those that the real sets are known to have."""

from __future__ import annotations

import json
import shutil

import make_data
import pytest

from detres.cli.check_data import main
from detres.data.checks import check_data_set
from detres.errors import DataError


def kinds(defects):
    return sorted(defect.kind for defect in defects)


def test_a_sound_set(tmp_path):
    make_data.coco(tmp_path)
    report = check_data_set(tmp_path, quiet=True)
    split = report.splits["val"]
    assert (split.images, split.objects, split.empty, split.crowd) == (2, 3, 0, 1)
    assert (split.classes["dog"].objects, split.classes["dog"].images) == (2, 2)
    assert split.areas == {"small": 2, "medium": 1, "large": 0}
    assert split.sides["shorter side of pictures"] == [80, 80, 80, 80, 80]
    assert (report.errors, report.defects, report.identical) == ([], [], [])


def test_nothing_stops_at_the_first(tmp_path):
    """A picture of another size, one truncated, one missing, an unknown category, a box of no size: all are named."""
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 80} for i in range(4)]
    for i in (0, 1, 2):
        make_data.write_image(tmp_path / "val" / f"{i}.jpg", *((50, 80) if i == 0 else (100, 80)), seed=i)
    truncated = tmp_path / "val" / "1.jpg"
    truncated.write_bytes(truncated.read_bytes()[:-40])
    objects = [
        {"id": 1, "image_id": 2, "category_id": 99, "bbox": [1, 1, 5, 5]},
        {"id": 2, "image_id": 2, "category_id": 3, "bbox": [1, 1, 0, 5]},
    ]
    make_data.coco(tmp_path, images=images, annotations=objects)
    (tmp_path / "val" / "3.jpg").unlink()
    report = check_data_set(tmp_path, "val", quiet=True)
    assert kinds(report.errors) == [
        "missing picture",
        "size differs",
        "unknown category",
        "unreadable picture",
    ]
    assert kinds(report.defects) == ["zero-size box"]
    differs = next(defect for defect in report.errors if defect.kind == "size differs")
    assert differs.where == str(tmp_path / "val" / "0.jpg")
    assert "100 x 80, the picture is 50 x 80" in differs.what


def test_boxes_on_the_unrotated_image(tmp_path):
    make_data.write_image(tmp_path / "val" / "a.png", 100, 80, exif_orientation=6)
    make_data.coco(tmp_path)
    report = check_data_set(tmp_path, quiet=True)
    assert report.errors == []
    assert kinds(report.defects) == ["EXIF orientation ignored by the annotation"]


def test_same_image_in_two_splits(tmp_path):
    make_data.coco(tmp_path, "train")
    make_data.coco(tmp_path, "val")
    make_data.write_image(tmp_path / "val" / "b.png", seed=9)
    assert check_data_set(tmp_path, quiet=True).identical == [["train/11", "val/11"]]


@pytest.mark.parametrize(
    ("lists", "crosses"),
    [
        ({"Main/train": "a", "Main/test": "b"}, True),
        ({"Main/train": "ab", "Main/test": "c"}, False),
        ({"Main/train": "ab", "Main/test": "c", "Layout/val": "a"}, False),  # `train` has both
        ({"Main/train": "c", "Layout/train": "a", "Layout/val": "b"}, True),
        ({"Main/train": "abc", "Layout/train": "a", "Layout/val": "b"}, True),
        ({"Main/train": "a", "Main/val": "b", "Main/trainval": "abc"}, True),
    ],
)
def test_copies_cross_where_each_is_in_a_split_without_the_other(tmp_path, lists, crosses):
    """`a` and `b` are copies, `c` is not; each may stand in several lists."""
    text = make_data.xml([("dog", (1, 1, 9, 9))])
    make_data.voc(tmp_path, {"train": dict.fromkeys("abc", text)})
    (tmp_path / "ImageSets" / "Main" / "train.txt").unlink()
    for name, stems in lists.items():
        path = tmp_path / "ImageSets" / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(stems))
    shutil.copyfile(tmp_path / "JPEGImages" / "a.png", tmp_path / "JPEGImages" / "b.png")
    report = check_data_set(tmp_path, quiet=True)
    assert [len(group) for group in report.identical] == [2]
    assert report.across_splits == (report.identical if crosses else [])


def test_lists_that_share_images_and_class_names_that_differ(tmp_path):
    text = make_data.xml([("dog", (1, 1, 9, 9))])
    make_data.voc(tmp_path / "voc", {"train": {"a": text}, "test": {"a": text}})
    report = check_data_set(tmp_path / "voc", quiet=True)
    assert kinds(report.defects) == ["splits share pictures"]
    make_data.coco(tmp_path / "coco", "train")
    make_data.coco(tmp_path / "coco", "val", categories=[{"id": 7, "name": "cat"}, {"id": 3, "name": "wolf"}])
    report = check_data_set(tmp_path / "coco", quiet=True)
    assert kinds(report.errors) == ["class names differ"]
    assert "dog, wolf" in report.errors[0].what


def test_split_that_cannot_be_read(tmp_path):
    make_data.coco(tmp_path, "train")
    make_data.coco(tmp_path, "val").write_text('{"images": [')
    report = check_data_set(tmp_path, quiet=True)
    assert kinds(report.errors) == ["unreadable split"]
    assert "line 1" in report.errors[0].what
    assert list(report.splits) == ["train"]


def test_tool_prints_all_then_fails(tmp_path, capsys):
    make_data.coco(tmp_path)
    (tmp_path / "val" / "b.png").unlink()
    with pytest.raises(DataError, match=r"has errors that stop a training \(missing picture: 1\)"):
        main(["--data", str(tmp_path), "--json", str(tmp_path / "out.json"), "--quiet"])
    printed = capsys.readouterr().out
    assert "'b.png'" in printed
    assert "dog" in printed
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["counts"] == {"missing picture": 1}
    assert written["splits"]["val"]["classes"]["dog"] == {"objects": 1, "images": 1}


def test_tool_on_a_sound_set(tmp_path, capsys):
    make_data.yolo(tmp_path, {"a": "0 0.5 0.5 0.9 0.9\n"})
    assert main(["--data", str(tmp_path), "--quiet"]) is None
    assert "no defects" in capsys.readouterr().out


def test_bccd(real_data):
    """The cells boxed twice (IoU 0.83 to 0.93) and the two boxes of no size are exactly those of data/README."""
    report = check_data_set(real_data / "bccd", pixels=False, quiet=True)
    doubled = [defect for defect in report.defects if defect.kind == "object boxed twice"]
    stems = sorted(defect.where.split("BloodImage_")[1][:5] for defect in doubled)
    assert stems == ["00013", "00020", "00100", "00104", "00251", "00284", "00331", "00403"]
    assert all(defect.where.endswith("RBC") for defect in doubled)
    assert report.counts()["zero-size box"] == 2
    assert report.errors == []


def test_kangaroo_oddities(real_data):
    report = check_data_set(real_data / "kangaroo_oddities", quiet=True)
    assert [(defect.kind, defect.where.rsplit("/")[-1]) for defect in report.errors] == [
        ("unreadable picture", "00090.jpg")
    ]
    assert "truncated" in report.errors[0].what
    assert kinds(report.defects) == ["object boxed twice"]
    assert "00155" in report.defects[0].where
    assert report.identical == [["all/00007", "all/00033"]]


def test_other_real_sets_are_sound(real_data):
    for name in ("fruit", "raccoon", "coco_val50", "coco128"):
        assert check_data_set(real_data / name, pixels=False, quiet=True).errors == []


def test_copy_of_a_real_image_under_another_name(real_data, tmp_path):
    shutil.copytree(real_data / "coco128", tmp_path / "copy")
    folder = tmp_path / "copy" / "images" / "train2017"
    first = sorted(path.name for path in folder.iterdir())[0]
    shutil.copyfile(folder / first, folder / "copied.jpg")
    assert check_data_set(tmp_path / "copy", quiet=True).identical == [
        [f"train2017/{first[:-4]}", "train2017/copied"]
    ]
