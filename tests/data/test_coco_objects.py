"""Columns of COCO's annotations against a loop over the rows, with and without faults."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detres.data.readers.coco_objects import objects_of
from detres.data.readers.common import Findings

PATH = Path("instances.json")
INDEX_OF: dict[object, int] = {30: 0, 10: 1, "a": 2}
LABEL_OF = {7: 0, 3: 1}
FAULTS = [
    {"image_id": 11},
    {"image_id": None},
    {"category_id": 9},
    {"bbox": None},
    {"bbox": [1, 2, 3]},
    {"bbox": [1, 2, 3, "4"]},
    {"bbox": [1, 2, 3, True]},
    {"bbox": {"x": 1}},
    {"image_id": [30]},
    {"category_id": {"id": 7}},
]


def row_of(rng: np.random.Generator, number: int) -> dict:
    row = {
        "id": number,
        "image_id": [30, 10, "a"][int(rng.integers(3))],
        "category_id": int(rng.choice([7, 3])),
        "bbox": [*rng.integers(0, 50, 2).tolist(), *rng.uniform(1, 9, 2).tolist()],
    }
    optional = {"iscrowd": int(rng.integers(2)), "difficult": bool(rng.integers(2)), "area": rng.random()}
    return row | {key: value for key, value in optional.items() if rng.random() < 0.7}


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_columns_equal_a_loop_over_the_rows(share):
    rng = np.random.default_rng(0)
    rows, expected, bad = [], [], []
    for number in range(200):
        row = row_of(rng, number)
        faulty = rng.random() < share
        rows.append(row | FAULTS[int(rng.integers(len(FAULTS)))] if faulty else row)
        if faulty:
            bad.append(f"instances.json, annotation {number}")
        else:
            x, y, width, height = row["bbox"]
            flags = bool(row.get("iscrowd")), bool(row.get("difficult"))
            place = INDEX_OF[row["image_id"]], LABEL_OF[row["category_id"]]
            expected.append((*place, x, y, x + width, y + height, *flags, row.get("area", np.nan)))
    findings = Findings()
    found = objects_of(rows, INDEX_OF, LABEL_OF, PATH, findings)
    columns = [found.images, found.labels, *found.boxes.T, found.crowd, found.difficult, found.areas]
    np.testing.assert_array_equal(np.stack(columns, axis=1), np.array(expected).reshape(-1, 9))
    assert [error.where for error in findings.errors] == bad
    assert found.boxes.shape == (len(expected), 4)
    assert not findings.report.defects


def test_each_fault_has_its_kind_and_the_first_of_several_is_told():
    rng = np.random.default_rng(1)
    findings = Findings()
    rows = [row_of(rng, number) | fault for number, fault in enumerate(FAULTS)]
    del rows[2]["id"]
    both = row_of(rng, 8) | {"image_id": 11, "category_id": 9, "bbox": []}
    assert not len(objects_of([*rows, both], INDEX_OF, LABEL_OF, PATH, findings))
    kinds = ["unknown image id"] * 2 + ["unknown category"] + ["malformed box"] * 5
    kinds += ["unknown image id", "unknown category", "unknown image id"]
    assert [error.kind for error in findings.errors] == kinds
    assert findings.errors[2].where == "instances.json, annotation number 2"
    assert findings.errors[6].what == "bbox [1, 2, 3, True] is not four numbers [x, y, width, height]"


def test_ids_used_again_are_told_each_time_among_the_rows_that_stay():
    rng = np.random.default_rng(2)
    rows = [row_of(rng, number) for number in (5, 6, 5, 5, 7, 6)]
    rows[1]["image_id"] = 11
    findings = Findings()
    found = objects_of(rows, INDEX_OF, LABEL_OF, PATH, findings)
    assert len(found) == 5
    assert [defect.where for defect in findings.report.defects] == ["instances.json, annotation 5"] * 2
    assert found.where(1) == "instances.json, annotation 5"
    assert found.where(4) == "instances.json, annotation 6"


def test_an_area_that_is_no_number_is_told_and_left_to_the_box():
    findings = Findings()
    row = {"id": [4], "image_id": 30, "category_id": 7, "bbox": [1, 2, 3, 4], "area": "big"}
    objects = objects_of([row], INDEX_OF, LABEL_OF, PATH, findings)
    assert np.isnan(objects.areas).tolist() == [True]
    assert [defect.kind for defect in findings.report.defects] == ["malformed area"]
    assert not findings.errors


@pytest.mark.parametrize("key", ["iscrowd", "difficult"])
@pytest.mark.parametrize(
    ("value", "flag", "told"),
    [
        (0, False, False),
        (1, True, False),
        (False, False, False),
        (True, True, False),
        (None, False, False),
        ("0", False, False),
        ("1", True, False),
        (2, False, True),
        ("no", False, True),
        ("", False, True),
        ([1], False, True),
        (float("nan"), False, True),
    ],
)
def test_what_a_flag_may_be(key, value, flag, told):
    findings = Findings()
    row = {"id": 4, "image_id": 30, "category_id": 7, "bbox": [1, 2, 3, 4]}
    objects = objects_of([row, row | {"id": 5, key: value}], INDEX_OF, LABEL_OF, PATH, findings)
    flags = {"iscrowd": objects.crowd, "difficult": objects.difficult}
    assert flags.pop(key).tolist() == [False, flag]
    assert not next(iter(flags.values())).any()
    expected = [(f"malformed {key}", "instances.json, annotation 5", f"{value!r}: taken as 0")]
    assert [(d.kind, d.where, d.what) for d in findings.report.defects] == (expected if told else [])
    assert not findings.errors


def test_no_rows():
    found = objects_of([], INDEX_OF, LABEL_OF, PATH, Findings())
    assert found.boxes.shape == (0, 4)
    assert found.images.dtype == found.labels.dtype == np.int64
    assert found.crowd.dtype == bool
