"""MSRA's networks as others publish them give the logits of an independently written BGR, stride-in-1x1 network."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
import torch
from msra_files import caffe2_arrays, msra_logits
from torch import Tensor

from detres.data.preprocessing import TORCHVISION, normalize
from detres.errors import WeightsError
from detres.networks.config import NetworkConfig
from detres.networks.resnet import build_network
from detres.weights.foreign import Backbone, read_backbone
from detres.weights.loading import load_tensors

DETECTRON_MEAN = (103.53, 116.28, 123.675)
CAFFE_MEAN = (102.9801, 115.9465, 122.7717)
EPS = 1e-5


@pytest.fixture(scope="module")
def arrays():
    return caffe2_arrays()


@pytest.fixture(scope="module")
def images():
    return torch.randint(
        0, 256, (2, 3, 78, 66), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def logits(backbone: Backbone, images: Tensor) -> Tensor:
    """Through the network and the preprocessing that the file gave, in float64."""
    network = build_network(NetworkConfig.model_validate(backbone.network), 7)
    assert load_tensors(network, backbone.tensors, where="test") == []
    with torch.no_grad():
        inputs = normalize(images, backbone.preprocessing, torch.float64)
        return network.double().eval()(inputs)


def same(found: Tensor, expected: Tensor) -> None:
    """Up to float32's rounding of the stored variance; the logits differ between pictures by far more."""
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def detectron2_names(arrays):
    """As detectron2 itself calls them: stem.conv1.norm.weight, res2.0.shortcut.weight."""
    renamed = {}
    for name, array in arrays.items():
        new = re.sub(r"^res_conv1_", "stem.conv1_", name)
        new = re.sub(r"^conv1_", "stem.conv1_", new)
        new = re.sub(
            r"^res(\d)_(\d+)_branch2([abc])_", lambda m: f"res{m[1]}.{m[2]}.conv{'abc'.index(m[3]) + 1}_", new
        )
        new = re.sub(r"^res(\d)_(\d+)_branch1_", r"res\1.\2.shortcut_", new)
        new = new.replace("_bn_s", ".norm.weight").replace("_bn_b", ".norm.bias")
        new = re.sub(r"_w$", ".weight", re.sub(r"_b$", ".bias", new))
        renamed[new] = array
    return renamed


def caffe_names(arrays, factor=1.0, many_blocks=False):
    """MSRA's layers and blobs: BatchNorm's mean, variance and factor, Scale's scale and offset, of the same map."""
    generator = np.random.default_rng(5)
    layers: dict[str, list[np.ndarray]] = {}
    for name, array in arrays.items():
        block = re.fullmatch(r"res(\d)_(\d+)_(branch\w+?)_(w|bn_s|bn_b)", name)
        if block:
            number = int(block[2])
            letter = f"b{number}" if many_blocks and number else "abcdefgh"[number]
            place, part = f"{block[1]}{letter}_{block[3]}", block[4]
            conv, norm, scale = f"res{place}", f"bn{place}", f"scale{place}"
        elif name.startswith("fc1000"):
            layers.setdefault("fc1000", []).append(array)
            continue
        else:
            conv, norm, scale = "conv1", "bn_conv1", "scale_conv1"
            part = name.removeprefix("res_").removeprefix("conv1_")
        if part in ("w", "b"):
            layers.setdefault(conv, []).append(array)
        elif part == "bn_s":
            mean = generator.normal(0, 0.3, len(array))
            variance = generator.uniform(0.5, 2, len(array))
            gamma = array * np.sqrt(variance + EPS)
            offset = arrays[name.removesuffix("s") + "b"] + array * mean
            layers[norm] = [mean * factor, variance * factor, np.array([factor])]
            layers[scale] = [gamma, offset]
    return {name: [blob.astype(np.float32) for blob in blobs] for name, blobs in layers.items()}


@pytest.mark.parametrize("wrapped", ["plain", "blobs", "with momentum"])
def test_caffe2_pickle(tmp_path, arrays, images, wrapped):
    content = dict(arrays)
    if wrapped == "with momentum":
        content |= {"conv1_w_momentum": np.zeros(3, np.float32), "lr": np.float32(0.1)}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"blobs": content} if wrapped == "blobs" else content, protocol=2))
    backbone = read_backbone(path)
    assert backbone.network == {
        "name": "resnet50",
        "width": 0.125,
        "stride_in": "1x1",
        "pool": "caffe",
        "eps": EPS,
    }
    assert (backbone.preprocessing.mean, backbone.folded, backbone.missing) == (DETECTRON_MEAN, True, ())
    same(logits(backbone, images), msra_logits(arrays, images, DETECTRON_MEAN))


def test_resnet101_is_told_from_resnet50(tmp_path, images):
    arrays = caffe2_arrays(101)
    (tmp_path / "R-101.pkl").write_bytes(pickle.dumps(arrays))
    backbone = read_backbone(tmp_path / "R-101.pkl")
    assert backbone.network["name"] == "resnet101"
    same(logits(backbone, images), msra_logits(arrays, images, DETECTRON_MEAN))


def test_detectron2_names(tmp_path, arrays, images):
    (tmp_path / "w.pkl").write_bytes(
        pickle.dumps({"model": detectron2_names(arrays), "__author__": "Caffe2"})
    )
    backbone = read_backbone(tmp_path / "w.pkl")
    assert backbone.layout.startswith("detectron2's MSRA")
    same(logits(backbone, images), msra_logits(arrays, images, DETECTRON_MEAN))


def test_detectron2_names_of_torchvision_s_weights(tmp_path):
    """Truth: the state_dict itself, renamed as detectron2's own converter does, which notes the author."""
    network = build_network(NetworkConfig(name="resnet18", width=0.125, stride_in="3x3"), 5)
    renamed = {}
    for name, tensor in network.state_dict().items():
        new = name if name.startswith("layer") else f"stem.{name}"
        new = re.sub(r"layer(\d)", lambda found: f"res{int(found[1]) + 1}", new)
        new = re.sub(r"bn(\d)", r"conv\1.norm", new)
        new = new.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        renamed[new] = tensor.numpy()
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": renamed, "__author__": "torchvision"}))
    backbone = read_backbone(tmp_path / "w.pkl")
    assert (backbone.network["name"], backbone.network["stride_in"]) == ("resnet18", "3x3")
    assert backbone.preprocessing == TORCHVISION
    assert all(torch.equal(backbone.tensors[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("form", "factor"), [("pickle", 1.0), ("pickle", 999.98), ("npz", 1.0), ("dict", 1.0)]
)
def test_caffe_blobs(tmp_path, arrays, images, form, factor):
    layers = caffe_names(arrays, factor, many_blocks=factor != 1)
    path = tmp_path / "w"
    if form == "npz":
        path = tmp_path / "w.npz"
        blobs = {f"{name}/{n}": blob for name, blobs in layers.items() for n, blob in enumerate(blobs)}
        np.savez(path, **blobs)  # type: ignore[arg-type]
    elif form == "dict":
        path.write_bytes(pickle.dumps({name: dict(enumerate(blobs)) for name, blobs in layers.items()}))
    else:
        path.write_bytes(pickle.dumps(layers))
    backbone = read_backbone(path)
    assert (backbone.network["name"], backbone.network["pool"], backbone.folded) == (
        "resnet50",
        "caffe",
        False,
    )
    same(logits(backbone, images), msra_logits(arrays, images, CAFFE_MEAN))


def test_caffe_vgg(tmp_path):
    """Truth: the tensors themselves, put under torchvision's names by hand."""
    network = build_network(NetworkConfig(name="vgg16", width=0.125), 5)
    names = "conv1_1 conv1_2 conv2_1 conv2_2 conv3_1 conv3_2 conv3_3 conv4_1 conv4_2 conv4_3 conv5_1 conv5_2 conv5_3"
    places = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    of = dict(zip(names.split(), [f"features.{place}" for place in places], strict=True))
    of |= {"fc6": "classifier.0", "fc7": "classifier.3", "fc8": "classifier.6"}
    layers = {name: [state[f"{ours}.weight"], state[f"{ours}.bias"]] for name, ours in of.items()}
    (tmp_path / "vgg.pkl").write_bytes(pickle.dumps(layers))
    backbone = read_backbone(tmp_path / "vgg.pkl")
    assert (backbone.network["name"], backbone.network["pool"]) == ("vgg16", "caffe")
    assert (backbone.preprocessing.channel_order, backbone.preprocessing.mean[0]) == ("BGR", 103.939)
    assert all(np.array_equal(backbone.tensors[name], array) for name, array in state.items())


def test_networks_start_from_r50_pkl(tmp_path, arrays):
    """A detector takes all of it but the last layer; a classifier is told that such BN should stay constant."""
    from detres.classification.classifier import start_classifier
    from detres.classification.config import ClassificationModelConfig
    from detres.detection.build import build_detector
    from detres.detection.config import DetectionConfig
    from detres.detection.start import load_backbone
    from detres.tasks.start import read_start

    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(arrays))
    backbone = read_backbone(tmp_path / "R-50.pkl")
    architecture = DetectionConfig().architecture(NetworkConfig.model_validate(backbone.network))
    detector = build_detector(architecture, 3, backbone.preprocessing)
    assert load_backbone(detector, backbone, partial=False) == []
    scale = detector.trunk.get_submodule("layer3.5.bn2").scale_and_offset()[0]  # type: ignore[operator]
    torch.testing.assert_close(scale, torch.from_numpy(arrays["res4_5_branch2b_bn_s"]))
    for frozen in (True, False):
        model = ClassificationModelConfig(init=str(tmp_path / "R-50.pkl"), freeze_batch_norm=frozen)
        start = start_classifier(model, read_start(model.network, model.init), ("a", "b"), seed=0)
        told = [note for _, note in start.notes if "has scale and offset but no statistics" in note]
        assert len(told) == (not frozen)


def test_what_is_not_of_the_layout_is_named(tmp_path, arrays):
    def refused(content, reason):
        (tmp_path / "w.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(WeightsError, match=reason):
            read_backbone(tmp_path / "w.pkl")

    grouped = {re.sub("_bn_", "_gn_", name): array for name, array in arrays.items()}
    refused(grouped, "res_conv1_gn_s.*group normalization is not built here")
    refused({**arrays, "rpn_conv_w": arrays["conv1_w"]}, "Caffe2's names, but also rpn_conv_w")
    refused(
        {**detectron2_names(arrays), "stem.conv2.weight": arrays["conv1_w"]}, "but also stem.conv2.weight"
    )
    refused(
        {**caffe_names(arrays), "res2a_branch2d": [arrays["conv1_w"]]},
        "Caffe's names, but also res2a_branch2d",
    )
    refused(
        {**caffe_names(arrays), "bn_conv1": [arrays["conv1_b"]]},
        "layer bn_conv1 has 1 arrays, not 3 as in Caffe",
    )
    refused(
        {**arrays, "res3_0_branch2a_w": arrays["conv1_w"]},
        r"as resnet50: layer2.0.conv1.weight is \(8, 3, 7, 7\)",
    )
