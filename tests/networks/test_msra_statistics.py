"""MSRA's ResNet-50 is read and computed as it was trained: activations on photographs against its statistics.

The stored mean and variance of each BN layer come from ImageNet's training set (He et al. 2015, Appendix A, and the
published models' note). A wrong stride, pool, channel order or value range shows in some layer.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from detres.data.preprocessing import MSRA, Preprocessing, normalize
from detres.networks.config import NetworkConfig
from detres.networks.resnet import build_network, split_network

CROP = 226
VARIANCE, MEAN = 0.95, 0.94  # what the correlations must reach


def photographs(real_data: Path) -> Tensor:
    """The first 50 pictures by name (000006 to 000643), uint8 RGB (50, 3, 226, 226).

    As in training (§3.4): shorter sides over [256, 480], here evenly in the order of the names; crops, here of
    the center and 226 wide: conv1's map is then 113 wide, where Caffe's pool and torchvision's differ in more than
    a mirror image.
    """
    import cv2

    folder = real_data / "voc2007_mini" / "VOCdevkit" / "VOC2007" / "JPEGImages"
    paths = sorted(folder.glob("*.jpg"))[:50]
    images = []
    for number, path in enumerate(paths):
        pixels = cv2.imread(str(path))
        assert pixels is not None
        scale = (256 + 224 * number // 49) / min(pixels.shape[:2])
        pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        top, left = (pixels.shape[0] - CROP) // 2, (pixels.shape[1] - CROP) // 2
        pixels = pixels[top : top + CROP, left : left + CROP, ::-1]
        images.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
    return torch.stack(images)


def correlations(
    real_data: Path, images: Tensor, preprocessing: Preprocessing = MSRA, **options: str
) -> dict[str, tuple[float, float]]:
    """For each BN layer: correlation over channels of log variance and of means with the stored ones."""
    from safetensors.torch import load_file

    config = NetworkConfig.model_validate(
        {"name": "resnet50", "stride_in": "1x1", "pool": "caffe", **options}
    )
    with torch.device("meta"):
        trunk, _ = split_network(build_network(config, 1000))
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
        for batch in images.split(10):
            trunk(normalize(batch, preprocessing))
    found = {}
    for name, norm in norms.items():
        count, first, second = torch.stack(sums[name]).sum(0)
        mean = first / count
        variance = second / count - mean**2
        assert norm.running_mean is not None
        assert norm.running_var is not None
        pairs = [(variance.log(), norm.running_var.double().log()), (mean, norm.running_mean.double())]
        found[name] = _correlation(*pairs[0]), _correlation(*pairs[1])
    return found


def _correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack((one, other)))[0, 1])


def agrees(found: dict[str, tuple[float, float]]) -> bool:
    return all(
        variance >= VARIANCE and (mean >= MEAN or name == "bn1") for name, (variance, mean) in found.items()
    )


def test_statistics_of_photographs_agree(real_data: Path) -> None:
    """Truth: the stored statistics, in every one of the 43 layers (bn1's stored mean is about zero)."""
    found = correlations(real_data, photographs(real_data))
    assert len(found) == 43
    assert agrees(found), found


@pytest.mark.slow
@pytest.mark.parametrize("mistake", ["stride", "pool", "order", "range"])
def test_a_mistake_shows(real_data: Path, mistake: str) -> None:
    """Truth: the same check of the same pictures fails where the network or its input is wrong."""
    images = photographs(real_data)
    if mistake == "stride":
        found = correlations(real_data, images, stride_in="3x3")
    elif mistake == "pool":
        found = correlations(real_data, images, pool="torchvision")
    elif mistake == "order":
        swapped = Preprocessing(
            channel_order="RGB", value_range=255, mean=(122.7717, 115.9465, 102.9801), std=MSRA.std
        )
        found = correlations(real_data, images, swapped)
    else:
        found = correlations(real_data, images, Preprocessing(channel_order="BGR"))
    assert not agrees(found)
