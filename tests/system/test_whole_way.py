"""From a folder of pictures to figures and drawn detections, by the tools alone, for each format."""

from __future__ import annotations

import json

import pytest
from whole_runs import ROOT, VALIDATION, call, in_own_process, metrics, train

from detres.cli import eval_coco, eval_voc, predict
from detres.data.shape_forms import SHAPE_CLASSES
from detres.weights.checkpoint import read_weights

RUN_FOLDER = {
    "best", "checkpoints", "config.yaml", "environment.json", "last", "log.txt", "metrics.jsonl", "model.safetensors",
    "images", "tensorboard",
}  # fmt: skip


@pytest.mark.parametrize("format", ["coco", "voc", "yolo"])
def test_train_evaluate_predict(format, written_scenes, recipe, tmp_path, capsys):
    """The figures that `eval_coco` finds are those of the run's best evaluation; of `eval_voc` too."""
    data, run = written_scenes / format, tmp_path / "run"
    ended = train(capsys, recipe, data, run, "--json", tmp_path / "train.json")
    assert (ended.status, ended.err) == (0, "")
    assert "Best figures" in ended.out
    written = json.loads((tmp_path / "train.json").read_text())
    assert written["weights"] == str(run / "model.safetensors")
    assert {path.name for path in run.iterdir()} == RUN_FOLDER
    assert {path.name for path in (run / "images").iterdir()} == {"first_batch.jpg", "validation.jpg"}
    best = max((line for line in metrics(run) if "val/AP" in line), key=lambda line: line["val/AP"] or 0)
    assert written["figures"] == {
        key.removeprefix("val/"): value
        for key, value in best.items()
        if key.startswith("val/") and not key.startswith("val/loss/")
    }
    _, metadata = read_weights(run / "model.safetensors")
    assert sorted(metadata.class_names) == sorted(SHAPE_CLASSES)

    weights = ["--weights", run / "model.safetensors", "--device", "cpu", "--quiet"]
    on_split = [*weights, "--data", data, "--split", "val"]
    results = tmp_path / "results.json"
    ended = call(
        capsys, eval_coco.main, *on_split, "--json", tmp_path / "coco.json", "--save-results", results
    )
    assert (ended.status, ended.err) == (0, "")
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert coco["images"] == VALIDATION
    assert coco["figures"] == pytest.approx(
        {name: written["figures"][name] for name in coco["figures"]}, abs=1e-6
    )
    ended = call(capsys, eval_voc.main, *on_split, "--json", tmp_path / "voc.json")
    assert (ended.status, ended.err) == (0, "")
    voc = json.loads((tmp_path / "voc.json").read_text())
    assert voc["figures"]["mAP"] == pytest.approx(written["figures"]["mAP"], abs=1e-6)

    # the results file alone says the same
    again = ["--results", results, "--data", data, "--split", "val", "--json", tmp_path / "again.json"]
    assert call(capsys, eval_coco.main, *again).status == 0
    assert json.loads((tmp_path / "again.json").read_text())["figures"] == pytest.approx(
        coco["figures"], abs=1e-6
    )

    images = sorted(path for path in data.rglob("*.png") if "val" in str(path.parent) or format == "voc")
    low = ["--set", "test.score_thresh=0"]
    ended = call(capsys, predict.main, *weights, "--out", tmp_path / "found", *low, *images[:2])
    assert (ended.status, ended.err) == (0, "")
    found = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert {row["image_id"] for row in found} == {str(path) for path in images[:2]}
    drawn = {path.name for path in (tmp_path / "found").iterdir()}
    assert drawn == {"detections.json", *(f"{path.stem}.jpg" for path in images[:2])}


def test_a_run_is_repeated_from_its_folder(written_scenes, recipe, tmp_path, capsys):
    """config.yaml and nothing else: the same run."""
    train(capsys, recipe, written_scenes / "voc", tmp_path / "first", "--set", "train.seed=7")
    saved = tmp_path / "first" / "config.yaml"
    ended = train(capsys, saved, written_scenes / "voc", tmp_path / "second")
    assert ended.status == 0
    assert (tmp_path / "first" / "model.safetensors").read_bytes() == (
        tmp_path / "second" / "model.safetensors"
    ).read_bytes()
    assert (tmp_path / "second" / "config.yaml").read_text() == saved.read_text()


def test_a_detector_goes_on_from_a_detector(written_scenes, recipe, tmp_path, capsys):
    """`--init` takes conv1..conv5_x of a trained detector, whatever its classes."""
    train(capsys, recipe, written_scenes / "voc", tmp_path / "first")
    init = ["--init", tmp_path / "first" / "model.safetensors", "--set", "train.length=1 iterations"]
    ended = train(capsys, recipe, written_scenes / "coco", tmp_path / "second", *init)
    assert (ended.status, ended.err) == (0, "")
    log = (tmp_path / "second" / "log.txt").read_text()
    assert "starts from random weights" not in log


def test_programs_of_their_own(written_scenes, recipe, tmp_path):
    """The scripts of tools/, as processes: results on standard output, the log on standard error, status 0."""
    run = tmp_path / "run"
    script = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    process = in_own_process(
        script, ROOT / "tools" / "train_det.py", "--cfg", recipe, "--data", written_scenes / "yolo", "--out", run,
        "--device", "cpu", "--set", "train.workers=2",
    )  # fmt: skip
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "Best figures" in out
    assert out.strip().endswith(f"weights: {run / 'model.safetensors'}")
    assert "configuration, where it differs from the defaults:" in err
    assert f"data.train=[{{dir: {written_scenes / 'yolo'}, split: train}}]" in err
    assert "anchors reach IoU 0.7 with" in err
    assert "6 steps of 2 images (2 epochs), rate 0.01 after 2 steps of warm-up; evaluated every 3" in err
