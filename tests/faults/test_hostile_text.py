"""Text that is made to harm ends as one line, at once: nesting, aliases, numbers that ask for memory, ways out."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from PIL import Image

from detres.data.formats import scan_annotations
from detres.data.readers.coco_json import read_coco_json
from detres.data.readers.coco_objects import objects_of
from detres.data.readers.common import Findings
from detres.data.readers.voc_xml import parse_voc_xml
from detres.data.readers.yolo_yaml import read_data_yaml
from detres.data.shapes import shapes_annotations
from detres.errors import UserError
from detres.evaluation.results_files import read_coco_results
from detres.strict_yaml import override_document, read_document

NESTED = "[" * 100_000
ALIASES = "names:\n- &a0 [x, x]\n" + "".join(
    f"- &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)


@pytest.fixture(autouse=True)
def at_once():
    start = time.perf_counter()
    yield
    assert time.perf_counter() - start < 2


def refused(call, *arguments) -> str:
    with pytest.raises(UserError) as raised:
        call(*arguments)
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def coco(root: Path, **changes) -> Path:
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 10}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}],
        "categories": [{"id": 1, "name": "a"}],
    }
    (root / "train").mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    Image.new("RGB", (20, 10)).save(root / "train" / "a.png")
    path = root / "annotations" / "instances_train.json"
    path.write_text(json.dumps({**content, **changes}))
    return path


def yolo(root: Path, label: str) -> Path:
    for name in ("images", "labels"):
        (root / name / "train").mkdir(parents=True)
    Image.new("RGB", (20, 10)).save(root / "images" / "train" / "a.png")
    (root / "labels" / "train" / "a.txt").write_text(label)
    return root


@pytest.mark.parametrize("reader", [read_document, read_data_yaml, read_coco_json])
def test_deep_nesting(tmp_path, reader):
    path = tmp_path / "x"
    path.write_text(f'{{"names": {NESTED}')
    assert "malformed" in refused(reader, path)


def test_deep_nesting_of_results_and_overrides(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(NESTED)
    assert "malformed json" in refused(read_coco_results, path, shapes_annotations("test", 1))
    assert "nested too deep" in refused(override_document, f"train.lr={NESTED}")


def test_results_with_a_byte_order_mark(tmp_path):
    (tmp_path / "results.json").write_bytes(b"\xef\xbb\xbf[]")
    assert len(read_coco_results(tmp_path / "results.json", shapes_annotations("test", 1))) == 0


@pytest.mark.parametrize("reader", [read_document, read_data_yaml])
def test_aliases(tmp_path, reader):
    (tmp_path / "x.yaml").write_text(ALIASES)
    assert "aliases make more than 10,000 values" in refused(reader, tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text("names: [cat]\ntrain: &t images\nval: *t\n")
    read = reader(tmp_path / "x.yaml")
    assert (read if reader is read_data_yaml else read.values)["val"] == "images"


@pytest.mark.parametrize("number", ["99999999", "999999999", "9" * 400, "100001.0"])
def test_class_numbers_that_ask_for_memory(tmp_path, number):
    root = yolo(tmp_path, f"0 .5 .5 .1 .1\n{number} .5 .5 .2 .2\n")
    message = refused(scan_annotations, root, "train")
    assert "labels/train/a.txt, line 2: class" in message
    assert "100,000 is the largest" in message


@pytest.mark.parametrize("first", ["²", "inf", "nan", "-", "1e9"])
def test_class_numbers_that_are_none(tmp_path, first):
    _, findings = scan_annotations(yolo(tmp_path, f"{first} .5 .5 .2 .2\n"), "train")
    assert len(findings.errors) == 1


def test_areas_and_boxes_of_hundreds_of_digits(tmp_path):
    huge = 10**400
    rows = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 4], "area": huge},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [1, 1, huge, 4]},
    ]
    findings = Findings()
    objects = objects_of(rows, {1: 0}, {1: 0}, Path("x.json"), findings)
    assert findings.report.counts() == {"malformed area": 1}
    assert [error.kind for error in findings.errors] == ["malformed box"]
    assert objects.boxes.tolist() == [[1, 1, 6, 5]]


@pytest.mark.parametrize("text", ["1e999", "9" * 400, "1e300", "nan"])
def test_voc_sizes_that_are_none(tmp_path, text):
    (tmp_path / "a.xml").write_text(
        f"<annotation><size><width>{text}</width><height>1</height></size></annotation>"
    )
    assert str(tmp_path / "a.xml") in refused(parse_voc_xml, tmp_path / "a.xml")


@pytest.mark.parametrize("side", [10**400, 1e300, -(10**30)])
def test_coco_sizes_that_are_none(tmp_path, side):
    coco(tmp_path, images=[{"id": 1, "file_name": "a.png", "width": side, "height": 10}])
    assert scan_annotations(tmp_path, "train")[1].errors[0].kind == "malformed size"


def test_json_numbers_of_thousands_of_digits(tmp_path):
    path = coco(tmp_path)
    path.write_text(path.read_text().replace('"width": 20', '"width": ' + "9" * 5000))
    assert "malformed JSON" in refused(scan_annotations, tmp_path, "train")


@pytest.mark.parametrize("name", ["../../outside.png", "ABSOLUTE", "../train/../../outside.png"])
@pytest.mark.parametrize("need_images", [True, False])
def test_file_names_that_leave_the_data_set(tmp_path, name, need_images):
    Image.new("RGB", (20, 10)).save(tmp_path / "outside.png")
    name = name.replace("ABSOLUTE", str(tmp_path / "outside.png"))
    coco(tmp_path / "set", images=[{"id": 1, "file_name": name, "width": 20, "height": 10}])
    annotations, findings = scan_annotations(tmp_path / "set", "train", need_images=need_images)
    assert [error.kind for error in findings.errors] == ["picture outside the data set"]
    assert len(annotations) == (0 if need_images else 1)


@pytest.mark.parametrize("name", ["../train/a.png", "ABSOLUTE"])
def test_file_names_that_come_back_are_followed(tmp_path, name):
    name = name.replace("ABSOLUTE", str(tmp_path / "set" / "train" / "a.png"))
    coco(tmp_path / "set", images=[{"id": 1, "file_name": name, "width": 20, "height": 10}])
    annotations, findings = scan_annotations(tmp_path / "set", "train")
    assert (len(annotations), findings.errors) == (1, [])
