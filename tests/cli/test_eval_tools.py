"""The evaluation tools end to end on a data set of three pictures, and the form of their `--json`."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from tiny_models import write_detector

import detres
from detres.api import Detector
from detres.cli import common, eval_coco, eval_det, eval_voc
from detres.data.drawing import write_image
from detres.data.records import DetectionTable
from detres.data.shape_forms import SHAPE_CLASSES
from detres.data.shapes import shapes_annotations
from detres.detection.config import DetectionTestConfig
from detres.errors import DataError, UserError

FIGURES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
BOXES = {
    7: (11, 10, 10, 50, 50),
    8: (11, 100, 20, 40, 60),
    9: (90, 5, 5, 100, 100),
}  # picture: category, xywh


@pytest.fixture
def folder(tmp_path):
    """`truth.json` without `area`, `iscrowd` and with annotation id 0; `right.json` finds all but one; no pictures."""
    truth = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 300, "width": 300} for i in (7, 8, 9)],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "bbox": box}
            for number, (image, (category, *box)) in enumerate(BOXES.items())
        ],
        "categories": [{"id": 11, "name": "cell"}, {"id": 90, "name": "clot"}, {"id": 91, "name": "mite"}],
    }
    results = [
        {"image_id": image, "category_id": category, "bbox": box, "score": 0.9}
        for image, (category, *box) in list(BOXES.items())[:2]
    ]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "right.json").write_text(json.dumps(results))
    return tmp_path


def arguments(folder, *more: str) -> list[str]:
    return ["--annotations", str(folder / "truth.json"), "--json", str(folder / "out.json"), *more]


def test_eval_coco_prints_sanity_then_figures_and_writes_json(folder, capsys):
    eval_coco.main([*arguments(folder), "--results", str(folder / "right.json"), "--bootstrap", "50"])
    printed = capsys.readouterr().out
    assert printed.index("Sanity") < printed.index("COCO") < printed.index("Classes")
    assert "1 classes with objects have no detections: clot" in printed
    assert "n/a" in printed
    assert "3 images, 2 detections" in printed
    written = json.loads((folder / "out.json").read_text())
    assert list(written["figures"]) == FIGURES
    assert written["figures"]["AP"] == pytest.approx(0.5)
    assert written["figures"]["APs"] is None
    assert written["reasons"]["APs"].startswith("no small objects")
    assert written["classes"] == {
        "cell": {"AP": pytest.approx(1.0), "AP50": pytest.approx(1.0), "objects": 2},
        "clot": {"AP": 0.0, "AP50": 0.0, "objects": 1},
        "mite": {"AP": None, "AP50": None, "objects": 0},
    }
    assert (written["images"], written["detections"], written["seconds_per_image"]) == (3, 2, None)
    assert sorted(written["intervals"]) == ["AP", "AP50", "AP75"]
    assert written["sanity"]["images"]["missed"] == 1


def test_eval_coco_against_others_results(folder, capsys):
    one = json.loads((folder / "right.json").read_text())[:1]
    (folder / "one.json").write_text(json.dumps(one))
    options = ["--results", str(folder / "right.json"), "--bootstrap", "50"]
    for other, sign in (("right.json", 0), ("one.json", 1)):
        eval_coco.main([*arguments(folder), *options, "--against", str(folder / other)])
        assert "difference to --against" in capsys.readouterr().out
        written = json.loads((folder / "out.json").read_text())["against"]
        assert written["results"] == str(folder / other)
        low, high = written["differences"]["AP50"]
        assert (low, high) == (0.0, 0.0) if sign == 0 else low >= 0 and high > 0


def test_engine_is_chosen_and_told(folder, capsys):
    given = [*arguments(folder), "--results", str(folder / "right.json"), "--engine"]
    figures = []
    for engine in ("pycocotools", "hotcoco"):
        if engine == "hotcoco":
            pytest.importorskip("hotcoco", reason="hotcoco is not installed (extra 'fast' or 'test')")
        eval_coco.main([*given, engine])
        assert f"3 images, 2 detections, by {engine}" in capsys.readouterr().out
        written = json.loads((folder / "out.json").read_text())
        assert written["engine"] == engine
        figures.append(written["figures"])
        assert figures[-1] == pytest.approx(figures[0], abs=1e-9)
    with pytest.raises(UserError, match="choose from"):
        eval_coco.main([*given, "fast"])


def test_eval_voc_reads_its_own_comp4_files(folder, capsys):
    results, comp4 = str(folder / "right.json"), str(folder / "comp4")
    eval_voc.main([*arguments(folder), "--results", results, "--save-comp4", comp4, "--split", "test"])
    first = json.loads((folder / "out.json").read_text())
    eval_voc.main([*arguments(folder), "--results", comp4])
    written = json.loads((folder / "out.json").read_text())
    printed = capsys.readouterr().out
    assert printed.index("Sanity") < printed.index("VOC, IoU 0.5") < printed.index("Classes")
    assert written["figures"] == first["figures"]
    assert written["figures"] == {"mAP": 0.5, "mAP_11point": pytest.approx(0.5), "mAP_area": 0.5}
    assert written["classes"]["cell"]["AP"] == 1.0
    assert written["classes"]["mite"]["AP"] is None
    assert written["class_reasons"]["clot"] == "no detections of this class"
    assert (written["images"], written["detections"], written["iou"]) == (3, 2, 0.5)


def test_eval_voc_at_another_overlap(folder):
    (folder / "loose.json").write_text(
        json.dumps([{"image_id": 7, "category_id": 11, "bbox": [10, 10, 50, 20], "score": 0.9}])
    )
    found = []
    for iou in ("0.5", "0.3"):
        eval_voc.main([*arguments(folder), "--results", str(folder / "loose.json"), "--iou", iou])
        found.append(json.loads((folder / "out.json").read_text())["figures"]["mAP"])
    assert found == [0.0, pytest.approx(0.25)]


def test_saved_results_are_those_that_were_read(folder):
    saved = folder / "saved.json"
    eval_coco.main(
        [*arguments(folder), "--results", str(folder / "right.json"), "--save-results", str(saved)]
    )
    assert json.loads(saved.read_text()) == json.loads((folder / "right.json").read_text())


def test_weights_are_loaded_and_run_on_the_split(folder, monkeypatch, capsys):
    """The seam to `detres.api`: options by keyword, labels in the detector's order, seconds in the figures."""
    seen = {}
    trained = Detector.__new__(Detector)
    trained.class_names, trained.test = ("mite", "clot", "cell"), DetectionTestConfig()

    def load(weights, *, device):
        seen.update(weights=weights, device=device)
        return trained

    def detect_split(detector, annotations, *, options, quiet):
        seen.update(options=options, names=annotations.class_names)
        images = np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets))
        scores = np.full(len(images), 0.5)
        return DetectionTable(images, annotations.boxes, scores, annotations.labels), 0.25

    monkeypatch.setattr("detres.api.load", load)
    monkeypatch.setattr(Detector, "detect_split", detect_split)
    (folder / "annotations").mkdir()
    (folder / "truth.json").rename(folder / "annotations" / "instances_test.json")
    for image in BOXES:
        (folder / f"{image}.jpg").touch()  # they must be there; nothing decodes them
    (folder / "right.json").unlink()
    options = ["--data", str(folder), "--split", "test", "--json", str(folder / "out.json")]
    eval_coco.main(
        ["--weights", "a.safetensors", *options, "--set", "test.score_thresh=1e-2", "--set", "test.flip=true"]
    )
    assert seen["weights"] == ["a.safetensors"]
    assert seen["options"] == {"score_thresh": 0.01, "flip": True}
    assert seen["names"] == ("mite", "clot", "cell")
    written = json.loads((folder / "out.json").read_text())
    assert written["figures"]["AP"] == pytest.approx(1.0)
    assert written["seconds_per_image"] == 0.25
    assert "0.250 s per image" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tool", "options", "message"),
    [
        (eval_coco, ["--results", "missing.json"], "no such file"),
        (eval_coco, ["--weights", "a.safetensors"], "--annotations has no images"),
        (eval_coco, ["--results", "a.json", "--set", "test.nms_thresh=0.5"], "test options change --weights"),
        (eval_coco, ["--results", "a.json", "--bootstrap", "-1"], "--bootstrap -1"),
        (eval_coco, ["--results", "a.json", "--against", "truth.json"], "say how many with --bootstrap"),
        (
            eval_coco,
            ["--results", "a.json", "--bootstrap", "9", "--against", "b.json"],
            "--against b.json: no such file",
        ),
        (eval_coco, [], "one of the arguments --weights --results is required"),
        (eval_voc, ["--results", "a.json", "--resluts", "b"], "unrecognized"),
    ],
)
def test_options_that_do_not_go_together(folder, tool, options, message):
    with pytest.raises(UserError, match=message):
        tool.main([*arguments(folder), *options])


def test_drawn_shapes_can_be_evaluated(tmp_path):
    (tmp_path / "none.json").write_text("[]")
    options = ["--data", "shapes:4", "--split", "val", "--json", str(tmp_path / "out.json")]
    eval_voc.main(["--results", str(tmp_path / "none.json"), *options])
    written = json.loads((tmp_path / "out.json").read_text())
    assert (written["images"], written["figures"]["mAP"]) == (4, 0.0)


@pytest.mark.parametrize(
    ("tool", "options", "message"),
    [
        (eval_coco, ["--engine", "hotcoco"], "hotcoco is not installed"),
        (eval_coco, ["--bootstrap", "9", "--against", "bad.json"], "bad.json"),
        (eval_voc, ["--iou", "50"], "--iou 50 is out of range"),
        (eval_coco, ["--json", "annotations"], r"annotations cannot be written: \S+ is in its place"),
        (eval_det, ["--save-results", "annotations"], r"annotations cannot be written: \S+ is in its place"),
        (
            eval_voc,
            ["--save-comp4", "7.jpg"],
            r"comp4_det_test_cell.txt cannot be written: \S+7.jpg is in its place",
        ),
        (
            eval_coco,
            ["--submission", "detections_test_tiny_results.json", "--set", "test.detections_per_img=200"],
            "test.detections_per_img=200: COCO's server counts the best 100",
        ),
    ],
)
def test_faults_are_found_before_anything_is_detected(folder, monkeypatch, tool, options, message):
    monkeypatch.setattr("detres.evaluation.engines._hotcoco_version", lambda: None)
    trained = Detector.__new__(Detector)
    trained.class_names, trained.test = ("cell", "clot", "mite"), DetectionTestConfig()
    monkeypatch.setattr("detres.api.load", lambda *_, **__: trained)
    monkeypatch.setattr(Detector, "detect_split", lambda *_, **__: pytest.fail("pictures are tested"))
    (folder / "bad.json").write_text('[{"image_id": 7}]')
    monkeypatch.chdir(folder)
    (folder / "annotations").mkdir()
    (folder / "truth.json").rename(folder / "annotations" / "instances_test.json")
    for image in BOXES:
        (folder / f"{image}.jpg").touch()
    (folder / "right.json").rename(folder / "bad2.txt")
    with pytest.raises(UserError, match=message):
        tool.main(["--weights", "a.safetensors", "--data", str(folder), "--split", "test", *options])


@pytest.mark.parametrize("override", ["train.lr=1", "test=3", "test.nms_thresh"])
def test_only_test_options_can_be_set(folder, override):
    with pytest.raises(UserError, match="--set"):
        eval_coco.main(["--weights", "a", "--data", str(folder), "--set", override])


def test_nan_scores_end_with_status_2_and_one_line(folder, capsys):
    text = (folder / "right.json").read_text().replace("0.9", "NaN")
    (folder / "right.json").write_text(text)
    with pytest.raises(SystemExit) as ended:
        common.run(eval_coco.main, [*arguments(folder), "--results", str(folder / "right.json")])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "image 7" in error
    assert len(error.splitlines()) == 1
    assert not (folder / "out.json").exists()


SWITCHES = ("refine=true", "box_voting=true", "flip=true", "scales=[64, 96, 128]")


@pytest.mark.parametrize("tool", [eval_coco, eval_voc])
def test_an_ensemble_with_all_switches(tool, tmp_path):
    """Two weights files and every switch by `--set`: the detections are those of the Python API."""
    weights = [write_detector(tmp_path / f"{seed}.safetensors", seed=seed) for seed in (0, 1)]
    options = [
        "--data",
        "shapes:2",
        "--split",
        "val",
        "--device",
        "cpu",
        "--json",
        str(tmp_path / "out.json"),
    ]
    sets = [argument for switch in SWITCHES for argument in ("--set", f"test.{switch}")]
    saved = tmp_path / "saved.json"
    tool.main(["--weights", *map(str, weights), *options, *sets, "--save-results", str(saved), "--quiet"])
    detector, scenes = detres.load(weights, device="cpu"), shapes_annotations("val", 2)
    assert isinstance(detector, Detector)
    switches = {"refine": True, "box_voting": True, "flip": True, "scales": (64, 96, 128)}
    expected, _ = detector.detect_split(scenes, options=switches, quiet=True)
    rows = json.loads(saved.read_text())
    assert [row["score"] for row in rows] == expected.scores.tolist()
    assert json.loads((tmp_path / "out.json").read_text())["test"]["scales"] == [64, 96, 128]


def test_detections_for_cocos_server(tmp_path, caplog, capsys, monkeypatch):
    """A split of pictures and categories alone: pycocotools loads what is written; the name is looked at first."""
    from pycocotools.coco import COCO

    data = tmp_path / "coco"
    images = [{"id": number, "file_name": f"{number}.jpg", "height": 80, "width": 120} for number in (7, 42)]
    categories = [{"id": 3 * label + 1, "name": name} for label, name in enumerate(SHAPE_CLASSES)]
    for image in images:
        write_image(data / "test2015" / image["file_name"], np.full((80, 120, 3), image["id"], np.uint8))
    info = data / "annotations" / "image_info_test-dev2015.json"
    info.parent.mkdir()
    info.write_text(json.dumps({"images": images, "categories": categories}))
    ids = tuple(category["id"] for category in categories)
    weights = write_detector(
        tmp_path / "w.safetensors", category_ids=ids, test={"proposals": 30, "score_thresh": 0.0}
    )
    options = ["--weights", str(weights), "--data", str(data), "--split", "test-dev2015", "--device", "cpu"]
    target = tmp_path / "detections_test-dev2015_tiny_results.json"
    eval_coco.main([*options, "--submission", str(target)])
    assert "no annotations: detections can be written but not measured" in caplog.text
    kit = COCO()
    kit.dataset = {**json.loads(info.read_text()), "annotations": []}
    kit.createIndex()
    loaded = kit.loadRes(str(target))
    assert {row["image_id"] for row in loaded.anns.values()} == {7, 42}
    assert {row["category_id"] for row in loaded.anns.values()} <= set(ids)
    again = (
        tmp_path / "detections_test-dev2015_again_results.json"
    )  # what was detected before can be sent, too
    eval_coco.main(["--results", str(target), *options[2:6], "--submission", str(again)])
    assert json.loads(again.read_text()) == json.loads(target.read_text())
    for wrong in (tmp_path / "found.json", tmp_path / "detections_val2014_tiny_results.json"):
        with pytest.raises(UserError, match=r"should be detections_<split>_<algorithm>_results\.json"):
            eval_coco.main([*options, "--submission", str(wrong)])
        assert not wrong.exists()
    info.write_text(json.dumps({"images": [{**images[0], "id": "seven"}], "categories": categories}))
    monkeypatch.setattr(Detector, "detect_split", lambda *_, **__: pytest.fail("pictures are tested"))
    with pytest.raises(DataError, match="image ids must be whole numbers"):
        eval_coco.main([*options, "--submission", str(target)])
    capsys.readouterr()


def test_detections_for_vocs_server(tmp_path, capsys, monkeypatch):
    """VOC 2012's test set has lists and pictures, and no XML: every class gets its file, empty or not."""
    year = tmp_path / "VOC2012"
    (year / "Annotations").mkdir(parents=True)
    (year / "ImageSets" / "Main").mkdir(parents=True)
    (year / "ImageSets" / "Main" / "test.txt").write_text("2008_000001\n2008_000004\n")
    for stem in ("2008_000001", "2008_000004"):
        write_image(year / "JPEGImages" / f"{stem}.jpg", np.full((80, 120, 3), 99, np.uint8))
    names = ("cat", "dog", "tvmonitor")
    weights = write_detector(tmp_path / "w.safetensors", names, test={"proposals": 30, "score_thresh": 0.0})
    options = ["--weights", str(weights), "--data", str(year), "--split", "test", "--device", "cpu"]
    eval_voc.main([*options, "--save-comp4", str(tmp_path / "Main")])
    files = {path.name for path in (tmp_path / "Main").iterdir()}
    assert files == {f"comp4_det_test_{name}.txt" for name in names}
    lines = [line.split() for path in (tmp_path / "Main").iterdir() for line in path.read_text().splitlines()]
    assert {line[0] for line in lines} == {"2008_000001", "2008_000004"}
    for _, score, x1, y1, x2, y2 in lines:
        assert 0 <= float(score) <= 1
        assert 1 <= float(x1) <= float(x2) + 1 <= 121.01
        assert 1 <= float(y1) <= float(y2) + 1 <= 81.01
    monkeypatch.setattr(Detector, "detect_split", lambda *_, **__: pytest.fail("pictures are tested"))
    other = write_detector(tmp_path / "other.safetensors", ("cat", "dog", "tv"))
    with pytest.raises(DataError, match="VOC's server does not know the class 'tv'"):
        eval_voc.main([*options[2:], "--weights", str(other), "--save-comp4", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()
    capsys.readouterr()


def test_comp4_files_are_named_by_the_split_that_is_read(folder, tmp_path, capsys):
    """Without `--split` that is the only one of the data; where there are several, or none, it must be said."""
    results, comp4 = str(folder / "right.json"), tmp_path / "comp4"
    with pytest.raises(UserError, match="with --split NAME"):
        eval_voc.main([*arguments(folder), "--results", results, "--save-comp4", str(comp4)])
    year = tmp_path / "VOC2007"
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (year / name).mkdir(parents=True)
    (year / "ImageSets" / "Main" / "val.txt").write_text("a\n")
    write_image(year / "JPEGImages" / "a.jpg", np.full((80, 120, 3), 99, np.uint8))
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    (year / "Annotations" / "a.xml").write_text(
        f"<annotation><size><width>120</width><height>80</height></size><object><name>cat</name>{box}</object>"
        "</annotation>"
    )
    (tmp_path / "found.json").write_text("[]")
    eval_voc.main(
        ["--data", str(year), "--results", str(tmp_path / "found.json"), "--save-comp4", str(comp4)]
    )
    assert {path.name.rsplit("_", 1)[0] for path in comp4.iterdir()} == {"comp4_det_val"}
    capsys.readouterr()


def test_help_does_not_import_torch():
    code = "\n".join(
        [
            "import sys",
            "from detres.cli import eval_coco, eval_voc",
            "for tool in (eval_coco, eval_voc):",
            "    try:",
            "        tool.main(['--help'])",
            "    except SystemExit:",
            "        pass",
            "print([name for name in ('torch', 'numpy', 'pycocotools') if name in sys.modules])",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "detres eval-voc --results" in done.stdout
