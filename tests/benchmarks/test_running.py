"""Every sub-command in seconds, through the tool; truths: the contract's form of `--json`, ratios worked out again."""

from __future__ import annotations

import copy
import json
import pickle
import zipfile
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from benchmarks import (
    ceiling,
    command,
    growing,
    inferring,
    loading,
    measuring,
    pooling,
    sampling,
    training_steps,
)
from benchmarks.cases import Case, Prepare, Prepared
from benchmarks.detectors import DetectorOptions, random_detector, training_samples
from benchmarks.evaluating import evaluate_cases
from benchmarks.inferring import infer_cases
from benchmarks.pooling import pool_cases
from benchmarks.sampling import SideHere
from benchmarks.training_steps import train_cases, train_cls_cases
from detres.data.config import Source
from detres.errors import UserError

CPU = torch.device("cpu")
cached_detector = cache(random_detector)
SMALL = DetectorOptions(network="resnet18", size=(64, 96), proposals=8, precisions=("float32",))
CASES = {
    "infer": lambda: infer_cases(SMALL),
    "train": lambda: train_cases(SMALL),
    "train-cls": lambda: train_cls_cases(["float32"], "cpu", [("resnet18", 32)], batch=2),
    "pool": lambda: pool_cases(["bfloat16"], "cpu", (64, 96), 4),
    "evaluate": lambda: evaluate_cases(5),
}
NAMES = {
    "infer": ["infer float32"],
    "train": ["train float32"],
    "train-cls": ["train-cls resnet18 32 float32"],
    "pool": [
        f"pool {kind}{way} bfloat16" for kind in ("RoIAlign", "RoI max") for way in ("", " with backward")
    ],
    "evaluate": ["evaluate"],
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Samples as short as they come, taken here, without the seconds that a process of its own starts in."""

    def start_here(prepare: Prepare, device: torch.device, keep_memory: bool) -> SideHere:
        return SideHere(pickle.loads(pickle.dumps(prepare)), device)

    for module in (inferring, training_steps):
        monkeypatch.setattr(
            module, "random_detector", lambda options: copy.deepcopy(cached_detector(options))
        )
    monkeypatch.setattr(pooling, "CHANNELS", 16)
    monkeypatch.setattr(measuring, "SideAlone", start_here)
    monkeypatch.setattr(sampling, "SHORTEST_SAMPLE", 0.0)
    monkeypatch.setattr(ceiling, "SECONDS", 0.0)
    monkeypatch.setattr(ceiling, "SIDE", {"cpu": 64})
    monkeypatch.setattr(ceiling, "MAPS", {"cpu": (1, 8, 8)})


def measured(cases: list[Case], **options: Any) -> dict[str, Any]:
    return measuring.measure_cases(cases, rounds=1, device=CPU, quiet=True, **options)


@pytest.mark.parametrize("what", CASES)
def test_cases_of_a_sub_command(what: str, capsys):
    figures = measured(CASES[what]())
    assert list(figures["cases"]) == NAMES[what]
    for name, case in figures["cases"].items():
        assert set(case) == {"seconds", "peak_rss_mib", "ceiling_share", "peers"}
        assert case["seconds"] > 0
        assert case["peak_rss_mib"] is None or case["peak_rss_mib"] > 50
        assert (case["ceiling_share"] is not None) == (what in ("infer", "train", "train-cls"))
        assert len(case["peers"]) == 1
        for peer in case["peers"].values():
            assert set(peer) == {"seconds", "ratio", "peak_rss_mib", "difference"}
            assert peer["ratio"] == peer["seconds"] / case["seconds"]
            assert peer["difference"] >= 0
        samples = figures["measurement"]["samples"][name]
        assert [side["name"] for side in samples] == ["detres", *case["peers"]]
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES[what])


def test_a_command_and_its_json(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("benchmarks.evaluating.evaluate_cases", lambda: evaluate_cases(5))
    path = tmp_path / "figures.json"
    command.main(["evaluate", "--rounds", "1", "--quiet", "--json", str(path)])
    figures = json.loads(path.read_text())
    assert figures["cases"]["evaluate"]["peers"]["pycocotools"]["seconds"] > 0
    assert figures["measurement"]["rounds"] == 1


def test_a_side_in_a_process_of_its_own():
    side = sampling.SideAlone(partial(Prepared, partial(sum, range(1000))), CPU, keep_memory=True)
    assert 0 < side.sample().seconds < 0.01
    assert (side.peak_mib() or 100) > 50
    side.close()


def test_the_loader_and_the_waiting(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(loading, "ANNOTATED_IMAGES", 6)
    monkeypatch.setattr(loading, "SIDES", (64, 96))
    monkeypatch.setattr("benchmarks.detectors.DetectorOptions", lambda **_: SMALL)
    path = tmp_path / "figures.json"
    argv = ["loader", "--data", "shapes:4", "--steps", "1", "--workers", "0", "--rounds", "1"]
    command.main([*argv, "--device", "cpu", "--quiet", "--json", str(path)])
    figures = json.loads(path.read_text())
    assert list(figures["cases"]) == ["loader 0 workers", "loader annotations of 6 images"]
    assert list(figures["cases"]["loader annotations of 6 images"]["peers"]) == ["pycocotools"]
    assert len(figures["waiting_share"]) == 2
    assert all(0 <= share <= 1 for share in figures["waiting_share"].values())
    assert "waiting for data" in capsys.readouterr().out


def test_the_loader_of_an_archive(tmp_path: Path):
    image = cv2.imencode(".png", np.zeros((40, 48, 3), np.uint8))[1].tobytes()
    with zipfile.ZipFile(tmp_path / "classes.zip", "w") as archive:
        for number in range(33):
            archive.writestr(f"train/{'ab'[number % 2]}/{number}.png", image)
    path = tmp_path / "figures.json"
    argv = ["loader", "--data", str(tmp_path / "classes.zip"), "--workers", "0", "--rounds", "1", "--quiet"]
    command.main([*argv, "--json", str(path)])
    (case,) = json.loads(path.read_text())["cases"].items()
    assert case[0] == "loader 128 px crops 0 workers"
    assert case[1]["seconds"] > 0


def test_an_archive_of_too_few_images(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "few.zip", "w") as archive:
        archive.writestr("train/a/0.png", cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    with pytest.raises(UserError, match="--steps is not for an archive"):
        command.main(["loader", "--data", str(tmp_path / "few.zip"), "--steps", "3"])
    with pytest.raises(UserError, match="1 images; should have 32"):
        loading.crop_cases(Source(dir=str(tmp_path / "few.zip"), split="train"), [0])


def test_growth_goes_along_one_thing_at_a_time(monkeypatch, capsys):
    for name, value in (("PROPOSALS", 3), ("AREAS", 2.0), ("BATCHES", 2), ("CLASSES", 1), ("OBJECTS", 5)):
        monkeypatch.setattr(growing, name, (value,))
    monkeypatch.setattr(growing, "IMAGES", (4,))
    names = ["infer 3 proposals", "infer 2 x the area", "infer batch 2", "infer 1 classes"]
    names += ["train batch 2", "train 5 objects", "evaluate 4 images"]
    cases = growing.growth_cases(SMALL)
    assert [case.name for case in cases] == names
    assert all(not case.peers for case in cases)
    few = [cases[0], cases[-1]]
    figures = measured(few, title="Growth")
    assert all(figures["cases"][case.name]["seconds"] > 0 for case in few)
    printed = capsys.readouterr().out
    assert printed.count("Growth") == 1
    assert all(case.name in printed for case in few)


def test_objects_of_a_crowd():
    samples = training_samples(replace(SMALL, batch=2, objects=5))
    assert [len(sample.boxes) for sample in samples] == [5, 5]


def test_disagreement_ends_the_tool_with_status_1(monkeypatch):
    monkeypatch.setattr(
        "benchmarks.pooling.pool_cases", lambda *given: pool_cases(given[0], given[1], (64, 96), 4)
    )
    monkeypatch.setattr(pooling, "roi_align", lambda maps, *given: torch.zeros(4, 16, 14, 14))
    with pytest.raises(SystemExit) as ended:
        command.main(["pool", "--precision", "float32", "--rounds", "1", "--device", "cpu", "--quiet"])
    assert "pool RoIAlign float32: torchvision (contiguous) and ours: the largest" in str(ended.value.code)


def test_peers_that_are_not_there_are_an_error(monkeypatch):
    monkeypatch.setattr(inferring, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="not installed: onnx, openvino; `pip install onnx openvino`"):
        inferring.choose_peers("openvino", CPU)
    monkeypatch.setattr(inferring, "find_spec", lambda name: name)
    assert inferring.choose_peers("onnxruntime,openvino", CPU) == ["onnxruntime", "openvino"]
    with pytest.raises(UserError, match="on the CPU only"):
        inferring.choose_peers("openvino", torch.device("cuda"))


def test_ceiling_is_a_rate():
    assert ceiling.measure_ceiling(torch.float32, CPU) > 1e6


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["infer", "--peers", "onnxruntme"], ["onnxruntme", "did you mean 'onnxruntime'?"]),
        (["infer", "--rounds", "0"], ["--rounds 0", "at least 1"]),
        (["infer", "--network", "resnet51"], ["resnet51", "did you mean 'resnet50'?"]),
        (["infer", "--size", "600", "16"], ["--size 16", "32 at least"]),
        (["pool", "--peers", "openvino"], ["--peers is not for pool", "infer"]),
        (["train-cls", "--same-allocator"], ["--same-allocator is not for train-cls", "infer, train"]),
        (["loader", "--data", "nothing_here"], ["nothing_here"]),
        (["loader", "--workers", "-1"], ["--workers"]),
        (["nothing"], ["invalid choice: 'nothing'"]),
    ],
)
def test_bad_input_is_one_line(argv: list[str], words: list[str]):
    with pytest.raises(UserError) as raised:
        command.main(argv)
    assert "\n" not in str(raised.value)
    for word in words:
        assert word in str(raised.value)
