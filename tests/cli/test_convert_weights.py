"""The tool end to end: published CIFAR-10 networks make the published errors on the JPEG copies of the test pictures.

Truth: 1897, 1744, 1733 and 1680 errors of 10,000, counted for the same files with the same pictures by others.
"""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import torch
import torchvision

from detres.cli import convert_weights, eval_cls
from detres.data.drawing import write_image
from detres.errors import UserError, WeightsError
from detres.weights.ours import read_weights

ERRORS = {20: 1897, 32: 1744, 44: 1733, 56: 1680}


def convert(real_data, depth, out):
    (path,) = (real_data / "cifar10_resnets").glob(f"resnet{depth}-*.th")
    convert_weights.main([str(path), str(out), "--quiet"])
    return ["--weights", str(out), "--device", "cpu", "--workers", "0", "--batch", "500", "--quiet"]


@pytest.mark.slow
@pytest.mark.parametrize("depth", ERRORS)
def test_published_networks_make_the_published_errors(real_data, tmp_path, depth):
    weights = convert(real_data, depth, tmp_path / "w.safetensors")
    data = [
        "--data",
        str(real_data / "cifar10.zip"),
        "--split",
        "test",
        "--json",
        str(tmp_path / "eval.json"),
    ]
    eval_cls.main([*weights, *data])
    found = json.loads((tmp_path / "eval.json").read_text())
    assert found["images"] == 10_000
    assert abs(found["figures"]["top1_error"] * 10_000 - ERRORS[depth]) <= 5


def test_published_resnet20_on_a_part_of_the_pictures(real_data, tmp_path):
    """Every fifth of the first 100 pictures of each class: errors within four deviations of what all let expect."""
    with zipfile.ZipFile(real_data / "cifar10.zip") as archive:
        for name in archive.namelist():
            if name.startswith("test/") and name.endswith(("0.jpg", "5.jpg")) and "/00" in name:
                archive.extract(name, tmp_path / "cifar")
    weights = convert(real_data, 20, tmp_path / "w.safetensors")
    data = ["--data", str(tmp_path / "cifar"), "--split", "test", "--json", str(tmp_path / "eval.json")]
    eval_cls.main([*weights, *data])
    found = json.loads((tmp_path / "eval.json").read_text())
    share, deviation = 0.1897, (0.1897 * 0.8103 / found["images"]) ** 0.5
    assert found["images"] == 200
    assert abs(found["figures"]["top1_error"] - share) <= 4 * deviation


def test_tool_says_what_it_found(tmp_path, capsys):
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), tmp_path / "in.pth")
    (tmp_path / "names.txt").write_text("ant\nbee\ncow\n")
    ours = tmp_path / "ours.safetensors"
    json_path = tmp_path / "facts.json"
    convert_weights.main(
        [
            str(tmp_path / "in.pth"),
            str(ours),
            "--classes",
            str(tmp_path / "names.txt"),
            "--json",
            str(json_path),
        ]
    )
    facts = json.loads(json_path.read_text())
    assert (facts["layout"], facts["network"], facts["stride in"]) == ("torchvision's", "resnet18", "3x3")
    assert facts["channels"] == "RGB, 0..1"
    assert read_weights(ours)[1].class_names == ("ant", "bee", "cow")
    convert_weights.main([str(ours), str(tmp_path / "out.safetensors"), "--to", "torchvision"])
    assert "ours.safetensors" in capsys.readouterr().out


def test_class_names_from_the_data(tmp_path):
    for name in ("bee", "ant", "cow"):
        write_image(tmp_path / "data" / "train" / name / "0.png", np.zeros((32, 32, 3), np.uint8))
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), tmp_path / "in.pth")
    ours = tmp_path / "ours.safetensors"
    convert_weights.main(
        [str(tmp_path / "in.pth"), str(ours), "--classes", str(tmp_path / "data"), "--quiet"]
    )
    assert read_weights(ours)[1].class_names == ("ant", "bee", "cow")


def test_input_at_fault_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"none.pth: no such weights file"):
        convert_weights.main([str(tmp_path / "none.pth"), str(tmp_path / "o.safetensors")])
    with pytest.raises(UserError, match=r"ends in \.safetensors"):
        convert_weights.main([str(tmp_path / "none.pth"), str(tmp_path / "o.pth")])
    with pytest.raises(UserError, match="torchvision's layout has no class names"):
        convert_weights.main(["a", "b.pth", "--to", "torchvision", "--classes", "c"])
