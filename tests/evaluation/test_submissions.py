"""Files for servers: read back by readers of the test's own and by pycocotools; what is refused before writing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detres.data.records import Annotations, DetectionTable, Strings
from detres.errors import DataError, UserError
from detres.evaluation.submissions import check_coco_name, write_coco_submission, write_voc_submission

NONE = np.zeros(0, np.int64)


def split_of(
    ids: list[str], class_names: tuple[str, ...], category_ids: tuple[int, ...] | None
) -> Annotations:
    """Pictures of 100 x 80 without objects, as a test split has them."""
    return Annotations(
        paths=Strings([f"{text}.jpg" for text in ids]),
        image_ids=Strings(ids),
        sizes=np.array([(80, 100)] * len(ids), dtype=np.int64),
        upright=np.ones(len(ids), dtype=bool),
        offsets=np.zeros(len(ids) + 1, dtype=np.int64),
        boxes=np.zeros((0, 4), np.float32),
        labels=NONE,
        crowd=np.zeros(0, dtype=bool),
        difficult=np.zeros(0, dtype=bool),
        areas=np.zeros(0),
        class_names=class_names,
        category_ids=category_ids,
        source="the split",
    )


COCO = split_of(["42", "7"], ("cat", "dog"), (17, 90))
VOC = split_of(["000042", "2008_000001"], ("cat", "pottedplant", "dog"), None)
FOUND = DetectionTable(
    images=np.array([0, 1, 1], np.int64),
    boxes=np.array([[0, 0, 100, 80], [10.25, 20.5, 30.75, 40], [1, 2, 3, 4]], np.float32),
    scores=np.array([0.9, 0.123456789, 1.0]),
    labels=np.array([1, 0, 1], np.int64),
)


def test_coco_results_load_in_pycocotools(tmp_path, capsys):
    from pycocotools.coco import COCO as Kit

    truth = {
        "images": [{"id": number, "width": 100, "height": 80} for number in (42, 7)],
        "categories": [{"id": 17, "name": "cat"}, {"id": 90, "name": "dog"}],
        "annotations": [],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    path = tmp_path / "detections_test-dev2015_detres_results.json"
    write_coco_submission(path, COCO, FOUND)
    kit = Kit(str(tmp_path / "truth.json"))
    loaded = kit.loadRes(str(path))
    capsys.readouterr()
    rows: list[dict] = [dict(loaded.anns[number]) for number in sorted(loaded.anns)]
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(42, 90), (7, 17), (7, 90)]
    assert rows[1]["bbox"] == [10.25, 20.5, 20.5, 19.5]
    assert [row["score"] for row in rows] == FOUND.scores.tolist()


def test_voc_files_in_the_kits_words(tmp_path):
    """One file a class, empty ones too; 1-based and inclusive: (x1 + 1, y1 + 1, x2, y2)."""
    write_voc_submission(tmp_path / "Main", VOC, FOUND, "test")
    read = {}
    for path in (tmp_path / "Main").iterdir():
        match = re.fullmatch(r"comp4_det_test_(.+)\.txt", path.name)
        assert match
        lines = [
            re.fullmatch(r"(\w+) ([\d.e-]+)((?: [\d.]+){4})", line) for line in path.read_text().splitlines()
        ]
        read[match[1]] = [(m[1], float(m[2]), [float(t) for t in m[3].split()]) for m in lines if m]
        assert len(read[match[1]]) == len(lines)
    assert read == {
        "cat": [("2008_000001", 0.123456789, [11.25, 21.5, 30.75, 40.0])],
        "pottedplant": [
            ("000042", 0.9, [1.0, 1.0, 100.0, 80.0]),
            ("2008_000001", 1.0, [2.0, 3.0, 3.0, 4.0]),
        ],
        "dog": [],
    }


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("detections_test-dev2015_detres_results.json", "test-dev2015"),
        ("detections_test-dev2017_r101-ms.v2_results.json", "test-dev"),
        ("detections_val2017_a_results.json", None),
    ],
)
def test_names_that_the_server_takes(name, split):
    check_coco_name(Path("some") / name, split)


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        (
            "found.json",
            None,
            r"found\.json: the name for COCO's server should be detections_<split>_<algorithm>_results\.json",
        ),
        (
            "detections_test-dev2015__results.json",
            None,
            "such as detections_test-dev2015_detres_results.json",
        ),
        ("detections_test-dev2015_a_results.json.txt", None, "should be"),
        (
            "detections_test-dev2015_a_results.json",
            "val2017",
            "has split 'test-dev2015', .* are of 'val2017'",
        ),
    ],
)
def test_names_that_it_does_not_take(name, split, message):
    with pytest.raises(UserError, match=message) as caught:
        check_coco_name(Path(name), split)
    assert len(str(caught.value).splitlines()) == 1


def changed(**rows: object) -> DetectionTable:
    return replace(
        FOUND, **{name: np.array(values, getattr(FOUND, name).dtype) for name, values in rows.items()}
    )


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (changed(scores=[0.9, np.nan, 1]), "1 of 3 detections have a score that is not finite"),
        (
            changed(boxes=[[0, 0, 9, 9], [5, 5, 5, 9], [1, 2, 3, 4]]),
            r"box without area, the first in image",
        ),
        (
            changed(boxes=[[0, 0, 9, 9], [5, 5, 102, 9], [-9, 2, 3, 4]]),
            "2 of 3 detections have a box outside",
        ),
        (changed(labels=[0, 9, 0]), "a label outside"),
    ],
)
def test_detections_that_are_refused_before_anything_is_written(tmp_path, found, message):
    for write in (
        lambda: write_coco_submission(tmp_path / "x.json", COCO, found),
        lambda: write_voc_submission(tmp_path / "Main", VOC, found, "test"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            write()
        assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_splits_that_no_server_knows(tmp_path):
    for truth, message in (
        (replace(COCO, category_ids=None), "no category ids"),
        (replace(COCO, image_ids=Strings(["42", "a"])), "must be whole numbers .* one is 'a'"),
    ):
        with pytest.raises(DataError, match=message):
            write_coco_submission(tmp_path / "x.json", truth, FOUND)
    many = DetectionTable(
        np.zeros(101, np.int64), np.tile(FOUND.boxes[:1], (101, 1)), np.ones(101), np.zeros(101, np.int64)
    )
    with pytest.raises(DataError, match=r"101 detections of one image.*test\.detections_per_img=100"):
        write_coco_submission(tmp_path / "x.json", COCO, many)
    for truth, split, message in (
        (
            replace(VOC, image_ids=Strings(["VOC2007/000042", "b"])),
            "test",
            "image 'VOC2007/000042' cannot be used",
        ),
        (replace(VOC, image_ids=Strings(["a b", "b"])), "test", "image 'a b'"),
        (replace(VOC, class_names=("cat/dog", "b", "c")), "test", "class 'cat/dog'"),
        (VOC, "Layout/test", "split 'Layout/test'"),
        (
            replace(VOC, class_names=("cat", "potted plant", "dog")),
            "test",
            r"server does not know the class 'potted plant' \(did you mean 'pottedplant'\?\)",
        ),
    ):
        with pytest.raises(DataError, match=message):
            write_voc_submission(tmp_path / "Main", truth, FOUND, split)
    assert list(tmp_path.iterdir()) == []


def test_nothing_found_is_a_submission_too(tmp_path):
    nothing = DetectionTable.concatenate([])
    write_coco_submission(tmp_path / "x.json", COCO, nothing)
    assert json.loads((tmp_path / "x.json").read_text()) == []
    write_voc_submission(tmp_path / "Main", VOC, nothing, "test")
    assert [path.read_text() for path in (tmp_path / "Main").iterdir()] == [""] * 3
