"""Every way to load weights refuses every kind of bad file with one line, and nothing is printed beside it."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models import write_detector, write_tiny_classifier

import detres
from detres.cli import bn_stats, convert_weights, eval_cls, eval_coco, eval_voc, predict, train_cls, train_det
from detres.data.drawing import write_image
from detres.errors import UserError
from detres.weights.checkpoint import METADATA_KEY, read_weights, save_weights
from detres.weights.foreign import read_backbone

CONV, VARIANCE = "conv1.weight", "layer1.0.bn1.running_var"
# Of a tensor: what is done to it, and what the refusal says.
FLAWS: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor], str]] = {
    "nan": (CONV, lambda t: t.clone().index_fill_(0, torch.tensor(0), float("nan")), "not finite"),
    "infinite": (CONV, lambda t: t * float("inf"), "not finite"),
    "beyond float32": (CONV, lambda t: t.double() * 1e300, "not finite"),
    "int8": (CONV, lambda t: (t * 100).to(torch.int8), "not floating point (int8)"),
    "bool": (CONV, lambda t: t > 0, "not floating point (bool)"),
    "complex": (CONV, lambda t: t.to(torch.complex64), "complex64 numbers"),
    "fp8": (CONV, lambda t: t.to(torch.float8_e4m3fn), "float8_e4m3fn numbers"),
    "negative variance": (VARIANCE, lambda t: -t, "negative variances"),
}
# Those that only a file of torch.save can hold.
ODD = {
    "sparse": (CONV, lambda t: t.to_sparse(), "sparse"),
    "csr": ("fc.weight", lambda t: t.to_sparse_csr(), "sparse"),
    "meta": (CONV, lambda t: t.to("meta"), "without values"),
    "quantized": (CONV, lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "qint8 numbers"),
}


def load(path: Path, capsys: pytest.CaptureFixture[str], read: Callable[[Path], object]) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")
    return str(caught.value)


def run(path: Path, capsys: pytest.CaptureFixture[str], main: Callable, arguments: Sequence[object]) -> str:
    words = [str(path if argument is ... else argument) for argument in arguments]
    with pytest.raises(UserError) as caught:
        main(words)
    assert "Traceback" not in capsys.readouterr().err
    return str(caught.value)


API = ("detres.load", "read_backbone", "convert_weights")
ALL_WAYS = pytest.mark.parametrize("tools", [False, pytest.param(True, marks=pytest.mark.slow)])


def ways_of(
    task: str, folder: Path, tools: bool
) -> dict[str, Callable[[Path, pytest.CaptureFixture[str]], str]]:
    """Every public way to load weights of a task, each giving the message of its refusal."""
    image = folder / "image.png"
    write_image(image, np.full((40, 60, 3), 90, np.uint8))
    quiet = ("--device", "cpu", "--quiet")
    shapes = ("--data", "shapes", "--split", "test")
    starts = ("--data", "shapes", "--out", folder / "run", *quiet, "--init", ...)
    ways: dict[str, Callable[[Path, pytest.CaptureFixture[str]], str]] = {
        "detres.load": partial(load, read=partial(detres.load, device="cpu")),
        "read_backbone": partial(load, read=read_backbone),
    }
    arguments = {"convert_weights": (convert_weights, ..., folder / "out.safetensors")}
    if task == "detection":
        arguments |= {
            "eval_coco": (eval_coco, *shapes, *quiet, "--weights", ...),
            "eval_voc": (eval_voc, *shapes, *quiet, "--weights", ...),
            "predict": (predict, image, "--out", folder / "found", *quiet, "--weights", ...),
            "train_det": (train_det, *starts),
        }
    else:
        arguments |= {
            "eval_cls": (eval_cls, *shapes, *quiet, "--weights", ...),
            "bn_stats": (bn_stats, *shapes, *quiet, "--out", folder / "bn.safetensors", "--weights", ...),
            "train_cls": (train_cls, *starts),
        }
    for name, (module, *words) in arguments.items():
        ways[name] = partial(run, main=module.main, arguments=words)
    return ways if tools else {name: ways[name] for name in API}


def assert_refused(path: Path, message: str, words: str) -> None:
    assert "\n" not in message
    assert path.name in message, message
    assert words in message, message


@pytest.mark.filterwarnings("error")
@ALL_WAYS
@pytest.mark.parametrize("flaw", FLAWS)
@pytest.mark.parametrize("task", ["detection", "classification"])
def test_tensors_that_no_network_can_use(task, flaw, tools, tmp_path, capsys):
    """Saved by us, so with a digest that fits, or by somebody who kept our metadata."""
    name, change, words = FLAWS[flaw]
    good = (write_detector if task == "detection" else write_tiny_classifier)(tmp_path / "good.safetensors")
    tensors, metadata = read_weights(good)
    name = f"trunk.{name}" if task == "detection" else name
    tensors[name] = change(tensors[name])
    save_weights(tmp_path / "ours.safetensors", tensors, metadata)
    with safe_open(good, "pt") as file:
        entries = file.metadata()
    save_file(tensors, tmp_path / "kept.safetensors", entries)
    for file in ("ours.safetensors", "kept.safetensors"):
        for way in ways_of(task, tmp_path, tools).values():
            message = way(tmp_path / file, capsys)
            assert_refused(tmp_path / file, message, words)
            assert name.removeprefix("trunk.") in message


@pytest.mark.filterwarnings("error")
@ALL_WAYS
@pytest.mark.parametrize("flaw", [*FLAWS, *ODD])
def test_foreign_tensors_that_no_network_can_use(flaw, tools, tmp_path, capsys):
    name, change, words = {**FLAWS, **ODD}[flaw]
    tensors = torchvision.models.resnet18(weights=None).state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors[name] = change(tensors[name])
        torch.save(tensors, tmp_path / "w.pth")
    if flaw in FLAWS:
        save_file(tensors, tmp_path / "w.safetensors")
    ways = {**ways_of("detection", tmp_path, tools), **ways_of("classification", tmp_path, tools)}
    for path in tmp_path.glob("w.*"):
        for way in {"read_backbone", "convert_weights", "train_det", "train_cls"} & ways.keys():
            message = ways[way](path, capsys)
            assert_refused(path, message, words)
            assert name in message


class Module(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image + 1


def write_bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no weights: name -> path, and what the refusal says."""
    good = write_detector(folder / "good.safetensors")
    whole = good.read_bytes()
    with safe_open(good, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    names = ("network", "optimizer", "scaler", "evaluated_at", "identity")
    torch.save({name: {"w": torch.ones(2)} for name in names}, folder / "state.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Module()), folder / "script.pt")
    with zipfile.ZipFile(folder / "export.pt2", "w") as archive:
        archive.writestr("export/archive_format", "pt2")
        archive.writestr("export/models/model.json", "{}")
    save_file(tensors, folder / "nested.safetensors", {METADATA_KEY: "[" * 5_000})
    (folder / "flipped.safetensors").write_bytes(whole[:-9] + bytes([whole[-9] ^ 64]) + whole[-8:])
    (folder / "short.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "empty.pth").write_bytes(b"")
    (folder / "page.pth").write_text("<html>404</html>")
    (folder / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    (folder / "folder.safetensors").mkdir()
    return {
        "state.pt": (folder / "state.pt", "a training checkpoint: use model.safetensors beside it"),
        "TorchScript": (folder / "script.pt", "TorchScript"),
        "torch.export": (folder / "export.pt2", "torch.export"),
        "nested": (folder / "nested.safetensors", "damaged"),
        "flipped": (folder / "flipped.safetensors", "damaged"),
        "short": (folder / "short.safetensors", "truncated"),
        "empty": (folder / "empty.safetensors", "truncated"),
        "empty pickle": (folder / "empty.pth", "truncated"),
        "page": (folder / "page.pth", "truncated or not"),
        "list": (folder / "list.pkl", ""),
        "folder": (folder / "folder.safetensors", "no such weights file"),
        "missing": (folder / "missing.safetensors", "no such weights file"),
        "long name": (folder / ("n" * 300 + ".safetensors"), "no such weights file"),
    }


@pytest.mark.filterwarnings("error")
@ALL_WAYS
@pytest.mark.parametrize("task", ["detection", "classification"])
def test_files_that_are_no_weights(task, tools, tmp_path, capsys):
    ways = ways_of(task, tmp_path, tools)
    for path, words in write_bad_files(tmp_path).values():
        for way in ways.values():
            assert_refused(path, way(path, capsys), words)


@pytest.mark.parametrize("read", [detres.load, read_backbone])
def test_a_name_that_no_system_takes(read):
    with pytest.raises(UserError, match="no such weights file"):
        read("a\0.safetensors")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_others_are_sent_to_init(suffix, tmp_path):
    """Whatever they are called, for the content decides."""
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / f"w{suffix}")
    with pytest.raises(UserError, match="--init and convert_weights take it"):
        detres.load(tmp_path / f"w{suffix}")
    assert read_backbone(tmp_path / f"w{suffix}").network["name"] == "resnet18"
