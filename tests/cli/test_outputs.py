"""No tool's output replaces what the tool reads, whatever the path is called."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from detres.errors import UserError

EVALUATION = {"--weights": "w.safetensors", "--data": "data"}
RESULTS = {"--results": "found.json", "--annotations": "truth.json"}
# Tool, its options that read with what they read ("" is a positional argument), its options that write.
TOOLS = [
    ("eval_coco", EVALUATION, ("--json", "--save-results")),
    ("eval_coco", {**RESULTS, "--against": "other.json"}, ("--json", "--save-results", "--submission")),
    ("eval_voc", EVALUATION, ("--json", "--save-results")),
    ("eval_voc", RESULTS, ("--json", "--save-results")),
    ("eval_det", RESULTS, ("--json", "--save-results")),
    ("eval_tta", {**EVALUATION, "--against": "other.json"}, ("--json",)),
    ("eval_cls", EVALUATION, ("--json",)),
    ("bn_stats", EVALUATION, ("--json", "--out")),
    ("layer_responses", EVALUATION, ("--json", "--out")),
    ("convert_weights", {"": "w.safetensors", "--classes": "names.txt"}, ("--json", "OUT")),
    ("plot_runs", {"": "data"}, ("--json", "--out")),
    ("check_data", {"--data": "data"}, ("--json",)),
    ("train_det", {"--cfg": "c.yaml", "--data": "data", "--init": "w.safetensors"}, ("--json", "--out")),
    ("train_cls", {"--cfg": "c.yaml", "--data": "data", "--init": "w.safetensors"}, ("--json", "--out")),
    ("predict", {"": "a.png", "--weights": "w.safetensors"}, ("--json",)),
]
SPELLINGS = ["{}", "./{}", "data/../{}", "link-{}", "hard-{}"]


@pytest.fixture
def inputs(tmp_path, monkeypatch) -> dict[Path, bytes]:
    """Files of every kind in the current folder, each with a symbolic and a hard link, and a folder with one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETRES_DATA", raising=False)
    Path("data").mkdir()
    files = [Path("data/metrics.jsonl")]
    for name in ("w.safetensors", "found.json", "truth.json", "other.json", "names.txt", "c.yaml", "a.png"):
        files.append(Path(name))
        Path(f"link-{name}").symlink_to(name)
    for path in files:
        path.write_bytes(f"content of {path}".encode())
        if path.parent == Path("."):
            Path(f"hard-{path}").hardlink_to(path)
    return {path: path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("tool", "reads", "writes"), TOOLS, ids=[f"{tool}-{len(reads)}" for tool, reads, _ in TOOLS]
)
def test_inputs_are_never_outputs(inputs, tool, reads, writes):
    main = importlib.import_module(f"detres.cli.{tool}").main
    arguments = [
        text for option, value in reads.items() for text in ((option, value) if option else (value,))
    ]
    targets = [
        spelling.format(value) for value in reads.values() if value != "data" for spelling in SPELLINGS
    ] + (["data/metrics.jsonl"] if "data" in reads.values() else [])
    for option in writes:
        for target in targets:
            output = [target] if option == "OUT" else [option, target]
            others = {"bn_stats": ["--out", "new.safetensors"], "convert_weights": ["new.safetensors"]}.get(
                tool, []
            )
            others = [] if option in (*others, "OUT") else others
            overwrite = ["--overwrite"] if tool == "predict" else []
            with pytest.raises(
                UserError, match=r"(is read by this command|is a file of \S+) and would be replaced"
            ):
                main([*arguments, *others, *output, *overwrite])
    assert {path: path.read_bytes() for path in inputs} == inputs


def test_data_is_looked_up_as_the_readers_do(tmp_path, monkeypatch):
    from detres.cli import check_data

    annotations = tmp_path / "sets" / "cells" / "train.json"
    annotations.parent.mkdir(parents=True)
    annotations.write_text("{}")
    monkeypatch.setenv("DETRES_DATA", str(tmp_path / "sets"))
    with pytest.raises(UserError, match=r"train\.json is a file of \S+cells and would be replaced"):
        check_data.main(["--data", "cells", "--json", str(annotations)])
    assert annotations.read_text() == "{}"
