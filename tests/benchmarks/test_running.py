"""Every sub-command in seconds, through the tool; truths: the contract's form of `--json`, ratios worked out again."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from benchmarks.alone import Request, SideHere

from benchmarks import command as benchmark
from benchmarks import operators, running
from benchmarks.detectors import DetectorOptions
from benchmarks.growing import GrowthOptions, growth_cases
from detres.errors import UserError

TINY = ["--rounds", "1", "--device", "cpu", "--quiet"]
NETWORK = ["--network", "resnet18", "--size", "64", "96", "--precision", "float32"]
COMMANDS = {
    "infer": [*NETWORK, "--proposals", "8", *TINY],
    "train": [*NETWORK, *TINY],
    "train-cls": ["--network", "resnet18", "--size", "32", "--batch", "2", "--precision", "float32", *TINY],
    "pool": ["--size", "64", "96", "--proposals", "4", "--precision", "bfloat16", *TINY],
    "nms": ["--size", "96", "128", *TINY],
    "evaluate": ["--images", "5", "--rounds", "1", "--quiet"],
    "loader": [*NETWORK, "--data", "shapes:4", "--images", "6", "--steps", "1", "--workers", "0", *TINY],
}
NAMES = {
    "infer": ["infer float32"],
    "train": ["train float32"],
    "train-cls": ["train-cls resnet18 32 float32"],
    "pool": [
        f"pool {kind}{way} bfloat16" for kind in ("RoIAlign", "RoI max") for way in ("", " with backward")
    ],
    "nms": ["nms 6000 to 300", "nms 12000 to 2000"],
    "evaluate": ["evaluate"],
    "loader": ["loader 0 workers", "loader annotations of 6 pictures"],
}


def start_here(request: Request) -> SideHere:
    """In the place of a process of its own, without the seconds of its start."""
    return SideHere(pickle.loads(pickle.dumps(request)))


@pytest.mark.parametrize("what", COMMANDS)
def test_a_sub_command(what: str, tmp_path: Path, capsys, monkeypatch):
    if what != "evaluate":  # one of them starts the processes
        monkeypatch.setattr(running, "SideAlone", start_here)
    path = tmp_path / "figures.json"
    benchmark.main([what, *COMMANDS[what], "--json", str(path)])
    figures = json.loads(path.read_text())
    assert list(figures["cases"]) == NAMES[what]
    for name, case in figures["cases"].items():
        assert set(case) == {"seconds", "peak_rss_mib", "ceiling_share", "peers"}
        assert case["seconds"] > 0
        assert case["peak_rss_mib"] is None or case["peak_rss_mib"] > 50
        assert (case["ceiling_share"] is not None) == (what in ("infer", "train", "train-cls"))
        for peer in case["peers"].values():
            assert set(peer) == {"seconds", "ratio", "peak_rss_mib", "difference"}
            assert peer["ratio"] == peer["seconds"] / case["seconds"]
            assert peer["difference"] >= 0
        samples = figures["measurement"]["samples"][name]
        assert list(samples) == ["detres", *case["peers"]]
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES[what])
    if what == "loader":
        assert all(0 <= share <= 1 for share in figures["waiting_share"].values())


def test_the_loader_of_an_archive(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(running, "SideAlone", start_here)
    image = cv2.imencode(".png", np.zeros((40, 48, 3), np.uint8))[1].tobytes()
    with zipfile.ZipFile(tmp_path / "classes.zip", "w") as archive:
        for number in range(33):
            archive.writestr(f"train/{'ab'[number % 2]}/{number}.png", image)
    argv = ["loader", "--data", str(tmp_path / "classes.zip"), "--workers", "0", "--size", "32", "32", *TINY]
    benchmark.main([*argv, "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures["cases"]) == ["loader 32 px crops 0 workers"]
    assert figures["cases"]["loader 32 px crops 0 workers"]["seconds"] > 0
    assert "32 px crops" in capsys.readouterr().out


def test_options_that_an_archive_has_no_use_for(tmp_path):
    with zipfile.ZipFile(tmp_path / "few.zip", "w") as archive:
        archive.writestr("train/a/0.png", b"")
    with pytest.raises(UserError, match="--steps is not for an archive"):
        benchmark.main(["loader", "--data", str(tmp_path / "few.zip"), "--steps", "3", *TINY])


def test_an_archive_with_less_than_a_batch(tmp_path):
    with zipfile.ZipFile(tmp_path / "few.zip", "w") as archive:
        archive.writestr("train/a/0.png", cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    with pytest.raises(UserError, match="1 pictures; a batch has 32"):
        benchmark.main(["loader", "--data", str(tmp_path / "few.zip"), *TINY])


def test_growth_goes_along_one_thing_at_a_time(monkeypatch, capsys):
    monkeypatch.setattr(running, "SideAlone", start_here)
    base = DetectorOptions(
        network="resnet18", width=0.25, size=(64, 96), proposals=8, precisions=("float32",)
    )
    options = GrowthOptions(
        base, areas=(2.0,), proposals=(3,), batches=(2,), classes=(1,), objects=(5,), images=(4,)
    )
    names = ["infer 3 proposals", "infer 2 x the area", "infer batch 2", "infer 1 classes"]
    names += ["train batch 2", "train 5 objects", "evaluate 4 images"]
    figures = running.measure_cases(
        growth_cases, options, rounds=1, device=torch.device("cpu"), together="Growth", quiet=True
    )
    assert list(figures["cases"]) == names
    assert all(case["seconds"] > 0 and case["peers"] == {} for case in figures["cases"].values())
    printed = capsys.readouterr().out
    assert printed.count("Growth") == 1
    assert all(name in printed for name in names)


def test_disagreement_ends_the_tool_with_status_1(monkeypatch):
    monkeypatch.setattr(operators, "nms", lambda boxes, scores, threshold, limit: scores.topk(3).indices)
    with pytest.raises(SystemExit) as ended:
        benchmark.main(["nms", *COMMANDS["nms"]])
    assert "nms 6000 to 300: torchvision and ours: 3 boxes are kept by ours" in str(ended.value.code)


def test_absent_peers_are_left_out_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(running, "missing_packages", lambda name: ["onnx", name])
    chosen = running.chosen_peers(["onnxruntime", "torchvision", "openvino"], torch.device("cpu"))
    assert chosen == ("torchvision",)
    assert capsys.readouterr().out.splitlines() == [
        f"{name} is left out: onnx, {name} not installed (`pip install onnx {name}`)"
        for name in ("onnxruntime", "openvino")
    ]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["infer", "--peers", "onnxruntme"], ["onnxruntme", "did you mean 'onnxruntime'?"]),
        (["infer", "--rounds", "0"], ["--rounds 0", "at least 1"]),
        (["infer", "--network", "resnet51"], ["resnet51", "did you mean 'resnet50'?"]),
        (["infer", "--size", "600"], ["--size 600", "height and width"]),
        (["train-cls", "--size", "600", "800"], ["--size 600 800", "a side"]),
        (["pool", "--peers", "openvino"], ["--peers is not for pool", "infer"]),
        (["nms", "--width", "0.5"], ["--width is not for nms"]),
        (["infer", "--width", "0"], ["--width"]),
        (["loader", "--data", "nothing_here"], ["nothing_here"]),
        (["loader", "--workers", "-1"], ["--workers"]),
        (["nothing"], ["invalid choice: 'nothing'"]),
    ],
)
def test_bad_input_is_one_line(argv: list[str], words: list[str]):
    with pytest.raises(UserError) as raised:
        benchmark.main(argv)
    assert "\n" not in str(raised.value)
    for word in words:
        assert word in str(raised.value)
