"""COCO's figures by each engine against pycocotools run by the test itself on the regular form of the data."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detres.data.formats import read_annotations
from detres.errors import DataError
from detres.evaluation.coco import FIGURES, evaluate_coco
from detres.evaluation.engines import Engine
from detres.evaluation.results_files import read_coco_results


def pycocotools_figures(truth: dict, results: list[dict]) -> tuple[list[float], np.ndarray]:
    """The twelve figures and precision (T, R, K) from a regular data set, as pycocotools' own example has it."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = truth  # type: ignore[assignment]
        ground.createIndex()
        evaluation = COCOeval(ground, ground.loadRes(results), "bbox")  # type: ignore[arg-type]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats), evaluation.eval["precision"][:, :, :, 0, 2]  # type: ignore[index]


def assert_same(result, stats, precision, tolerance=1e-9):
    for name, expected in zip(FIGURES, stats, strict=True):
        found = -1 if result.figures[name] is None else result.figures[name]
        assert found == pytest.approx(expected, abs=tolerance), name
    for number, figures in enumerate(result.classes.values()):
        found = -1 if figures["AP"] is None else figures["AP"]
        assert found == pytest.approx(precision[:, :, number].mean(), abs=tolerance)
        found = -1 if figures["AP50"] is None else figures["AP50"]
        assert found == pytest.approx(precision[0, :, number].mean(), abs=tolerance)


def random_data(seed: int, *, crowd: bool, most_detections: int = 12) -> tuple[dict, list[dict]]:
    """Objects and detections on quarter pixels, equal scores included; ids gappy and out of order."""
    rng = np.random.default_rng(seed)
    image_ids = [9, 1000, 3, 77, 12, 5]
    category_ids = [90, 2, 40]
    objects, results = [], []
    for image in image_ids[:-1]:  # the last has no object
        for _ in range(int(rng.integers(1, 9))):
            x, y, w, h = (rng.integers([0, 0, 4, 4], [1200, 1200, 700, 700]) / 4).tolist()
            category = int(rng.choice(category_ids[:2])) if seed % 2 else int(rng.choice(category_ids))
            objects.append(
                {
                    "image_id": image,
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": int(crowd and rng.random() < 0.15),
                }
            )
            for _ in range(int(rng.integers(0, 3))):
                shift = rng.integers(-16, 17, 4) / 4
                box = np.maximum(np.array([x, y, w, h]) + shift, [0, 0, 1, 1]).tolist()
                score = float(rng.integers(1, 20) / 20)
                results.append({"image_id": image, "category_id": category, "bbox": box, "score": score})
    for image in image_ids:
        for _ in range(int(rng.integers(0, most_detections))):
            box = (rng.integers([0, 0, 4, 4], [1200, 1200, 700, 700]) / 4).tolist()
            category = int(rng.choice(category_ids))
            score = float(rng.integers(1, 20) / 20)
            results.append({"image_id": image, "category_id": category, "bbox": box, "score": score})
    for number, row in enumerate(objects, start=1):
        row["id"] = number
    truth = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 480, "width": 480} for i in image_ids],
        "annotations": objects,
        "categories": [{"id": i, "name": f"class {i}"} for i in category_ids],
    }
    return truth, results


def through_files(folder: Path, truth: dict, results: list[dict], engine: Engine = "pycocotools"):
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    annotations, _ = read_annotations(folder / "truth.json", None)
    table = read_coco_results(folder / "results.json", annotations)
    return evaluate_coco(annotations, table, engine=engine)


@pytest.fixture(params=["pycocotools", "hotcoco"])
def engine(request) -> Engine:
    """Each engine in turn; hotcoco is skipped where it is not installed."""
    if request.param == "hotcoco":
        pytest.importorskip("hotcoco", reason="hotcoco is not installed (extra 'fast' or 'test')")
    return request.param


@pytest.mark.parametrize("seed", range(4))
def test_irregular_data_gives_the_figures_of_its_regular_form(tmp_path, seed, engine):
    """Annotation id 0, no area, no iscrowd, gappy ids, a picture without objects, a class without any."""
    truth, results = random_data(seed, crowd=False)
    expected = pycocotools_figures(json.loads(json.dumps(truth)), results)
    for row in truth["annotations"]:
        row["id"] -= 1
        del row["area"], row["iscrowd"]
    assert_same(through_files(tmp_path, truth, results, engine), *expected)


@pytest.mark.parametrize("seed", range(4))
def test_crowd_regions_are_pycocotools(tmp_path, seed, engine):
    truth, results = random_data(seed, crowd=True)
    expected = pycocotools_figures(json.loads(json.dumps(truth)), results)
    assert_same(through_files(tmp_path, truth, results, engine), *expected)


def test_more_than_100_detections_in_a_image(tmp_path, engine):
    truth, results = random_data(1, crowd=False, most_detections=900)
    expected = pycocotools_figures(json.loads(json.dumps(truth)), results)
    result = through_files(tmp_path, truth, results, engine)
    assert result.detections > 1000
    assert_same(result, *expected)


def test_annotation_id_0_counts(make_truth, make_table, engine):
    """Where pycocotools alone gives 0.0: one object whose id is 0, found perfectly."""
    truth = make_truth([[(0, 10, 10, 60, 60)]], classes=["a"])
    result = evaluate_coco(truth, make_table([(0, 0, 0.9, 10, 10, 60, 60)]), engine=engine)
    assert result.figures["AP"] == pytest.approx(1.0)
    assert result.classes == {"a": {"AP": pytest.approx(1.0), "AP50": pytest.approx(1.0), "objects": 1}}


def test_figures_that_do_not_exist_are_none_with_the_reason(make_truth, make_table):
    truth = make_truth([[(0, 10, 10, 60, 60)], []], classes=["a", "b"])
    result = evaluate_coco(truth, make_table([(0, 0, 0.9, 10, 10, 60, 60)]))
    assert result.figures["APs"] is result.figures["ARl"] is None
    assert result.reasons["APl"] == "no large objects (area from 96^2 px) in the ground truth"
    assert result.reasons["ARs"] == "no small objects (area up to 32^2 px) in the ground truth"
    assert result.classes["b"]["AP"] is None
    assert "no objects in the ground truth" in result.class_reasons["b"]
    assert not set(result.reasons) & {"AP", "APm", "ARm"}


def test_no_detections_is_zero_with_the_reason(make_truth, make_table, engine):
    result = evaluate_coco(make_truth([[(0, 10, 10, 60, 60)]]), make_table([]), engine=engine)
    assert result.figures["AP"] == result.figures["AR100"] == 0.0
    assert result.figures["APs"] is None
    assert result.reasons["AP"] == "there are no detections"
    assert result.class_reasons["cat"] == "no detections of this class"


@pytest.mark.parametrize("images", [[], [[]], [[], []]])
def test_no_objects_is_none_with_the_reason(make_truth, make_table, images, engine):
    table = make_table([(0, 0, 0.5, 0, 0, 9, 9)] if images else [])
    result = evaluate_coco(make_truth(images), table, engine=engine)
    assert set(result.figures.values()) == {None}
    assert set(result.reasons) == set(FIGURES)
    assert result.reasons["AP"] == "the ground truth has no objects"


def test_only_crowd_regions(make_truth, make_table):
    result = evaluate_coco(make_truth([[(0, 0, 0, 50, 50, "crowd")]]), make_table([(0, 0, 0.5, 0, 0, 9, 9)]))
    assert result.reasons["AP"] == "the ground truth has only crowd regions"
    assert "only crowd regions" in result.class_reasons["cat"]
    assert result.classes["cat"]["objects"] == 0


def test_zero_says_how_close_the_detections_came(make_truth, make_table):
    """(0, 0, 100, 100) and (0, 0, 100, 40) overlap by 0.4; at (0, 0, 100, 60) by 0.6, which is AP75 0 only."""
    truth = make_truth([[(0, 0, 0, 100, 100)]])
    far = evaluate_coco(truth, make_table([(0, 0, 0.5, 0, 0, 100, 40)]))
    assert far.figures["AP"] == 0.0
    assert far.reasons["AP"] == "the best IoU of detections with objects of their class is 0.40, below 0.5"
    assert (
        far.reasons["APl"]
        == "the best IoU of detections with large objects of their class is 0.40, below 0.5"
    )
    near = evaluate_coco(truth, make_table([(0, 0, 0.5, 0, 0, 100, 60)]))
    assert near.figures["AP50"] == pytest.approx(1.0)
    assert "below 0.75" in near.reasons["AP75"]
    first = evaluate_coco(truth, make_table([(0, 0, 0.9, 200, 200, 300, 300), (0, 0, 0.5, 0, 0, 100, 100)]))
    assert first.figures["AR1"] == 0.0
    assert "none of the 1 best detections" in first.reasons["AR1"]


def test_difficult_objects_are_ordinary(make_truth, make_table):
    table = make_table([(0, 0, 0.5, 0, 0, 50, 50)])
    hard = evaluate_coco(make_truth([[(0, 0, 0, 50, 50, "difficult")]]), table)
    assert hard.figures == evaluate_coco(make_truth([[(0, 0, 0, 50, 50)]]), table).figures


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_refuses_scores_and_boxes_that_are_not_finite(make_truth, make_table, bad):
    truth = make_truth([[(0, 0, 0, 10, 10)]])
    with pytest.raises(DataError, match="1 of 1 detections have a score that is not finite"):
        evaluate_coco(truth, make_table([(0, 0, bad, 0, 0, 1, 1)]))
    with pytest.raises(DataError, match="a coordinate that is not finite"):
        evaluate_coco(truth, make_table([(0, 0, 0.5, 0, 0, bad, 1)]))


def test_prints_nothing(make_truth, make_table, capfd, engine):
    evaluate_coco(make_truth([[(0, 0, 0, 50, 50)]]), make_table([(0, 0, 0.5, 0, 0, 50, 50)]), engine=engine)
    assert capfd.readouterr().out == ""


def test_real_images_equal_pycocotools(real_data, tmp_path, engine):
    """coco_val50 with its gappy ids and crowd regions; detections are its boxes, shifted at random."""
    file = real_data / "coco_val50" / "annotations" / "instances_val2017.json"
    truth = json.loads(file.read_text())
    rng = np.random.default_rng(0)
    results = []
    for row in truth["annotations"]:
        box = np.round(np.array(row["bbox"]) * rng.uniform(0.9, 1.1, 4), 2)
        entry = {"image_id": row["image_id"], "category_id": row["category_id"], "bbox": box.tolist()}
        results.append({**entry, "score": float(rng.integers(1, 50) / 50)})
    expected = pycocotools_figures(truth, results)
    (tmp_path / "results.json").write_text(json.dumps(results))
    annotations, _ = read_annotations(file, None)
    table = read_coco_results(tmp_path / "results.json", annotations)
    assert_same(evaluate_coco(annotations, table, engine=engine), *expected)
