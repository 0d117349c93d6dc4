"""MSRA's ResNet-50 is read and computed as it was trained: activations on photographs against its statistics.

The stored mean and variance of each BN layer come from ImageNet's training set (He et al. 2015, Appendix A, and the
published models' note). A wrong stride, pool, channel order or value range shows in some layer.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from detres.data.preprocessing import MSRA, Preprocessing, normalise
from detres.networks.config import NetworkConfig
from detres.networks.resnet import build_network, split

PHOTOGRAPHS = 50
SHORT_SIDE = 256
VARIANCE, MEAN = 0.95, 0.94  # what the correlations must reach; the right network has 0.96 and 0.95


def photographs(real_data: Path) -> list[Tensor]:
    """The first 50 pictures of trainval, uint8 RGB (3, h, w), shorter side resized."""
    import cv2

    folder = real_data / "voc2007_mini" / "VOCdevkit" / "VOC2007"
    names = (folder / "ImageSets" / "Main" / "trainval.txt").read_text().split()[:PHOTOGRAPHS]
    images = []
    for name in names:
        pixels = cv2.imread(str(folder / "JPEGImages" / f"{name}.jpg"))
        assert pixels is not None
        scale = SHORT_SIDE / min(pixels.shape[:2])
        pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        images.append(torch.from_numpy(pixels[:, :, ::-1].copy()).permute(2, 0, 1))
    return images


def correlations(
    real_data: Path, images: list[Tensor], preprocessing: Preprocessing = MSRA, **options: str
) -> dict[str, tuple[float, float]]:
    """For each BN layer: correlation over channels of log variance and of means with the stored ones."""
    from safetensors.torch import load_file

    config = NetworkConfig.model_validate({"name": "resnet50", "stride_in": "1x1", "pool": "caffe", **options})
    with torch.device("meta"):
        trunk, _ = split(build_network(config, 1000))
    tensors = load_file(real_data / "weights" / "resnet50-msra-conv1-layer3.safetensors")
    counters = {key: torch.zeros(()) for key in trunk.state_dict() if key.endswith("num_batches_tracked")}
    kept = {key: value for key, value in tensors.items() if key in trunk.state_dict()}
    trunk.load_state_dict({**kept, **counters}, assign=True)
    trunk.eval()
    sums: dict[str, list[Tensor]] = {}

    def watch(name: str, norm: nn.BatchNorm2d) -> None:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
            values = inputs[0].numel() // inputs[0].shape[1]
            moments = torch.stack((torch.ones_like(mean), mean, variance + mean**2)).double() * values
            sums.setdefault(name, []).append(moments)

        norm.register_forward_pre_hook(add)

    norms = {name: module for name, module in trunk.named_modules() if isinstance(module, nn.BatchNorm2d)}
    for name, norm in norms.items():
        watch(name, norm)
    with torch.no_grad():
        for image in images:
            trunk(normalise(image[None], preprocessing))
    found = {}
    for name, norm in norms.items():
        count, first, second = torch.stack(sums[name]).sum(0)
        mean = first / count
        variance = second / count - mean**2
        assert norm.running_mean is not None
        assert norm.running_var is not None
        pairs = [(variance.log(), norm.running_var.double().log()), (mean, norm.running_mean.double())]
        found[name] = tuple(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs)
    return found


def agrees(found: dict[str, tuple[float, float]]) -> bool:
    return all(
        variance >= VARIANCE and (mean >= MEAN or name == "bn1") for name, (variance, mean) in found.items()
    )


def test_statistics_of_photographs_agree(real_data: Path) -> None:
    """Truth: the stored statistics, in every one of the 43 layers (bn1's stored mean is about zero)."""
    found = correlations(real_data, photographs(real_data))
    assert len(found) == 43
    assert agrees(found), found


@pytest.mark.parametrize("mistake", ["stride", "pool", "order", "range"])
def test_a_mistake_shows(real_data: Path, mistake: str) -> None:
    """Truth: the same check fails where the network or its input is wrong; fewer pictures are enough."""
    images = photographs(real_data)[:10]
    if mistake == "stride":
        found = correlations(real_data, images, stride_in="3x3")
    elif mistake == "pool":
        found = correlations(real_data, images, pool="torchvision")
    elif mistake == "order":
        swapped = Preprocessing(channel_order="RGB", value_range=255, mean=MSRA.mean[::-1], std=MSRA.std)
        found = correlations(real_data, images, swapped)
    else:
        found = correlations(real_data, images, Preprocessing(channel_order="BGR"))
    assert not agrees(found)
