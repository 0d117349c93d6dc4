"""The tool end to end: published CIFAR-10 networks make the published errors on the JPEG copies of the test pictures.

Truth: 1897, 1744, 1733 and 1680 errors of 10,000, counted for the same files with the same pictures by others; on a
part of them the errors of a network written out here, layer by layer, from the published description alone.
"""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image

from detres.cli import convert_weights, eval_cls
from detres.data.drawing import write_image
from detres.errors import UserError, WeightsError
from detres.weights.checkpoint import read_weights

ERRORS_OF_200 = 46  # of resnet20
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


def plain_resnet20(state: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """The published network (N, 3, 32, 32) -> logits (N, 10), of functions alone.

    He et al. 2015, §4.2: a convolution, three stages of three blocks of two convolutions, the mean of each map, a
    linear layer; where maps shrink the shortcut takes every second pixel and has zeros for channels, half in front.
    """

    def layer(name: str, norm: str, maps: torch.Tensor, stride: int = 1) -> torch.Tensor:
        maps = F.conv2d(maps, state[f"{name}.weight"], stride=stride, padding=1)
        mean, variance = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        return F.batch_norm(maps, mean, variance, state[f"{norm}.weight"], state[f"{norm}.bias"], eps=1e-5)

    maps = F.relu(layer("conv1", "bn1", images))
    for stage, channels in ((1, 16), (2, 32), (3, 64)):
        for block in range(3):
            stride = 2 if stage > 1 and block == 0 else 1
            place = f"layer{stage}.{block}"
            inner = F.relu(layer(f"{place}.conv1", f"{place}.bn1", maps, stride))
            inner = layer(f"{place}.conv2", f"{place}.bn2", inner)
            zeros = (channels - maps.shape[1]) // 2
            maps = F.relu(inner + F.pad(maps[:, :, ::stride, ::stride], (0, 0, 0, 0, zeros, zeros)))
    return F.linear(maps.mean(dim=(2, 3)), state["linear.weight"], state["linear.bias"])


def test_published_resnet20_on_a_part_of_the_images(real_data, tmp_path):
    """Every fifth of the first 100 pictures of each class: the errors of the network above, to the picture."""
    with zipfile.ZipFile(real_data / "cifar10.zip") as archive:
        for name in archive.namelist():
            if name.startswith("test/") and name.endswith(("0.jpg", "5.jpg")) and "/00" in name:
                archive.extract(name, tmp_path / "cifar")
    weights = convert(real_data, 20, tmp_path / "w.safetensors")
    data = ["--data", str(tmp_path / "cifar"), "--split", "test", "--json", str(tmp_path / "eval.json")]
    eval_cls.main([*weights, *data])
    found = json.loads((tmp_path / "eval.json").read_text())

    (file,) = (real_data / "cifar10_resnets").glob("resnet20-*.th")
    published = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    state = {name.removeprefix("module."): tensor for name, tensor in published.items()}
    paths = sorted((tmp_path / "cifar" / "test").glob("*/*.jpg"))
    classes = sorted({path.parent.name for path in paths})  # CIFAR-10's labels are in this order
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = ((torch.from_numpy(pixels) / 255 - mean) / std).permute(0, 3, 1, 2)
    labels = torch.tensor([classes.index(path.parent.name) for path in paths])
    errors = int((plain_resnet20(state, images).argmax(dim=1) != labels).sum())
    assert (found["images"], len(paths), len(classes)) == (200, 200, 10)
    assert errors == ERRORS_OF_200
    assert round(found["figures"]["top1_error"] * 200, 6) == errors


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
