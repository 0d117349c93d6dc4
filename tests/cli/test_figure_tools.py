"""layer-responses, plot-runs and model-table end to end: figures, pictures, and what is refused."""

from __future__ import annotations

import json

import pytest
from tiny_models import write_tiny_classifier

from detres.cli import layer_responses, model_table, plot_runs
from detres.errors import UserError


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_tiny_classifier(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


def test_layer_responses_of_two_files(tmp_path, weights, capsys):
    common = [
        "--data",
        "shapes:20",
        "--split",
        "val",
        "--images",
        "8",
        "--workers",
        "0",
        "--device",
        "cpu",
        "--quiet",
    ]
    both = ["--weights", str(weights), str(weights), "--labels", "one", "two"]
    out = ["--out", str(tmp_path / "figure7.png"), "--json", str(tmp_path / "f.json")]
    layer_responses.main([*common, *both, *out])
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["images"] == 8
    assert found["networks"]["one"] == found["networks"]["two"]
    layers = found["networks"]["one"]
    assert [layer["layer"] for layer in layers[:2]] == ["layer1.0.conv1", "layer1.0.conv2"]  # conv1 is 7x7
    assert len(layers) == 16
    assert all(layer["deviation"] > 0 and layer["gradient_norm"] > 0 for layer in layers)
    assert (tmp_path / "figure7.png").read_bytes().startswith(b"\x89PNG")
    layer_responses.main([*common, "--weights", str(weights), "--all", "--json", str(tmp_path / "f.json")])
    (all_layers,) = json.loads((tmp_path / "f.json").read_text())["networks"].values()
    assert len(all_layers) == 17
    assert "resnet18 (tiny)" in capsys.readouterr().out


def test_layer_responses_refuses(tmp_path, weights):
    common = ["--weights", str(weights), str(weights)]
    with pytest.raises(UserError, match="--data is missing"):
        layer_responses.main(common)
    data = ["--data", "shapes:8", "--split", "val", "--workers", "0", "--quiet"]
    with pytest.raises(UserError, match="1 names for 2 weights files"):
        layer_responses.main([*common, *data, "--labels", "one"])
    with pytest.raises(UserError, match="two weights files are called"):
        layer_responses.main([*common, *data])
    with pytest.raises(UserError, match=r"an image ends in \.png"):
        layer_responses.main([*common, *data, "--out", "figure.txt"])


def test_plot_runs(tmp_path, capsys):
    for name, error in (("plain", 0.4), ("residual", 0.2)):
        folder = tmp_path / name
        folder.mkdir()
        lines = [{"step": 10, "train/top1_error": 2 * error}, {"step": 20, "train/top1_error": error}]
        lines.append({"step": 20, "val/top1_error": error + 0.1})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = ["--out", str(tmp_path / "figure6.svg"), "--json", str(tmp_path / "f.json")]
    plot_runs.main([str(tmp_path / "plain"), str(tmp_path / "residual"), *out])
    found = json.loads((tmp_path / "f.json").read_text())["runs"]
    assert found["plain"]["final"] == {"train": 0.4, "test": 0.5, "best_test": 0.5, "iterations": 20}
    assert found["residual"]["train"] == [[10, 0.4], [20, 0.2]]
    assert "<svg" in (tmp_path / "figure6.svg").read_text()
    assert "residual" in capsys.readouterr().out
    with pytest.raises(UserError, match="1 different names for 2 runs"):
        plot_runs.main([str(tmp_path / "plain"), str(tmp_path / "plain")])
    with pytest.raises(UserError, match="--smooth must be at least 1"):
        plot_runs.main([str(tmp_path / "plain"), "--smooth", "0"])


def test_model_table(tmp_path, capsys, monkeypatch):
    """Of a few networks; `tests/report/test_model_table.py` counts them all."""
    names = ("resnet50", "resnet152", "plain34", "cifar_resnet1202", "vgg19")
    monkeypatch.setattr("detres.report.model_table.get_args", lambda _: names)
    model_table.main(
        ["--side", "64", "--short-side", "64", "--long-side", "96", "--json", str(tmp_path / "m.json")]
    )
    found = json.loads((tmp_path / "m.json").read_text())
    assert {row["name"] for row in found["networks"]} == set(names)
    parts = [row for row in found["detectors"] if row["network"] == "resnet101"]
    trunk, rpn, head = (row["multiply_adds"] for row in parts)
    assert found["image"]["multiply_adds"]["resnet101"] == trunk + rpn + 300 * head
    assert "19,4" in capsys.readouterr().out  # parameters of ResNet-1202
    with pytest.raises(UserError, match="must be at least 32"):
        model_table.main(["--side", "16"])
