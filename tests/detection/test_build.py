"""Detectors from backbones and files: round trips, conflicts between configuration and weights, partial weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectors import detector_with_spread_scores, drawn_images, small_architecture

from detres.data.preprocessing import MSRA, TORCHVISION, Preprocessing
from detres.detection.build import build_detector, load_backbone, prepare_for_training, read_detector
from detres.detection.config import Architecture, DetectionConfig, ModelConfig
from detres.detection.detect import TestConfig, detect
from detres.errors import ConfigError, WeightsError
from detres.networks.config import NetworkConfig
from detres.networks.resnet import build_network
from detres.weights.checkpoint import Metadata, read_weights, save_weights
from detres.weights.foreign import read_backbone
from detres.weights.starting import start_network

FORM = {"name": "resnet18", "width": 0.125, "stride_in": "3x3", "pool": "caffe", "eps": 2e-5}
CLASS_NAMES = ("cat", "dog")
TEST = TestConfig(score_thresh=0.02, proposals=20)


def metadata_of(architecture: Architecture, **changes: object) -> Metadata:
    fields: dict[str, object] = {
        "task": "detection",
        "architecture": architecture.model_dump(mode="json"),
        "class_names": CLASS_NAMES,
        "preprocessing": MSRA,
        "sizes": {"short_side": 96, "long_side": 160},
    }
    return Metadata.model_validate({**fields, **changes})


def classifier_file(path: Path, *, without: str | None = None, preprocessing: Preprocessing = MSRA) -> Path:
    """The weights of a classification network made here, less the tensors whose names start with `without`."""
    torch.manual_seed(1)
    config = NetworkConfig.model_validate(FORM)
    tensors = build_network(config, 4).state_dict()
    kept = {name: tensor for name, tensor in tensors.items() if not (without and name.startswith(without))}
    metadata = Metadata(
        task="classification",
        architecture={"network": config.model_dump(mode="json")},
        class_names=("a", "b", "c", "d"),
        preprocessing=preprocessing,
        sizes={"crop": 64},
    )
    save_weights(path, kept, metadata)
    return path


def architecture_on(network: NetworkConfig) -> Architecture:
    return small_architecture().model_copy(update={"network": network})


@pytest.mark.parametrize("changes", [{}, {"pooler": "roi_pool", "anchor_sizes": (24.0, 48.0)}])
def test_a_weights_file_gives_the_same_detections(tmp_path, changes):
    images, _, _ = drawn_images(96, 128, 2, count=1)
    architecture = small_architecture(**changes)
    network = detector_with_spread_scores(architecture, 2, images[0], MSRA)
    save_weights(tmp_path / "model.safetensors", network.state_dict(), metadata_of(architecture))
    again, rebuilt, metadata = read_detector(tmp_path / "model.safetensors")
    assert (rebuilt, metadata.class_names, again.preprocessing) == (architecture, CLASS_NAMES, MSRA)
    assert not again.training
    before, after = (
        detect(n, images, [(1.0, 1.0)], architecture.proposal_options(TEST), architecture.target_stds, TEST)[
            0
        ]
        for n in (network, again)
    )
    assert len(before.scores) > 3
    assert before.boxes.equal(after.boxes)
    assert before.scores.equal(after.scores)


def test_files_that_are_no_detector_are_refused(tmp_path):
    architecture = small_architecture()
    network = build_detector(architecture, 2, TORCHVISION)
    with pytest.raises(WeightsError, match="weights for classification, not for detection"):
        read_detector(classifier_file(tmp_path / "classifier.safetensors"))
    wrong = metadata_of(architecture, class_names=("cat", "dog", "cow"))
    save_weights(tmp_path / "classes.safetensors", network.state_dict(), wrong)
    with pytest.raises(WeightsError, match=r"region_head\.class_logits\.weight"):
        read_detector(tmp_path / "classes.safetensors")
    described = {**architecture.model_dump(mode="json"), "aligned": "maybe"}
    damaged = metadata_of(architecture).model_copy(update={"architecture": described})
    save_weights(tmp_path / "damaged.safetensors", network.state_dict(), damaged)
    with pytest.raises(WeightsError, match="architecture key aligned"):
        read_detector(tmp_path / "damaged.safetensors")


def test_form_and_preprocessing_come_with_the_weights(tmp_path):
    path = classifier_file(tmp_path / "backbone.safetensors")
    network, preprocessing, backbone = start_network(NetworkConfig(), str(path))
    assert {name: getattr(network, name) for name in FORM} == FORM
    assert preprocessing == MSRA
    assert backbone is not None
    fresh = NetworkConfig(name="resnet34")
    assert start_network(fresh, None) == (fresh, TORCHVISION, None)


@pytest.mark.parametrize(
    ("key", "value"), [("name", "resnet34"), ("stride_in", "1x1"), ("pool", "torchvision"), ("eps", 1e-5)]
)
def test_a_configuration_that_contradicts_the_weights_is_named(tmp_path, key, value):
    path = classifier_file(tmp_path / "backbone.safetensors")
    with pytest.raises(ConfigError, match=f"model.network.{key} is {value}, but the weights .* have"):
        start_network(NetworkConfig.model_validate({key: value}), str(path))
    start_network(NetworkConfig.model_validate({key: FORM[key]}), str(path))


def test_a_backbone_goes_into_trunk_and_head(tmp_path):
    path = classifier_file(tmp_path / "backbone.safetensors")
    model = ModelConfig(init=str(path), freeze_at=2)
    network, architecture = prepare_for_training(model, architecture_on, 2, seed=3)
    assert architecture.network.width == FORM["width"]
    backbone = read_backbone(path)
    tensors = network.state_dict()
    assert tensors["trunk.layer3.1.conv2.weight"].equal(backbone.tensors["layer3.1.conv2.weight"])
    assert tensors["region_head.body.layer4.0.bn1.weight"].equal(backbone.tensors["layer4.0.bn1.weight"])
    frozen = {name.split(".")[1] for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}
    assert not any("bn" in name for name, _ in network.named_parameters()), "frozen BN has no parameters"


def test_missing_weights_are_an_error_or_listed(tmp_path, caplog):
    path = classifier_file(tmp_path / "partial.safetensors", without="layer4.1.conv")
    with pytest.raises(WeightsError, match=r"lacks layer4\.1\.conv1\.weight.*init_partial: true"):
        prepare_for_training(ModelConfig(init=str(path)), architecture_on, 2, seed=0)
    with caplog.at_level("INFO", "detres"):
        prepare_for_training(ModelConfig(init=str(path), init_partial=True), architecture_on, 2, seed=0)
    assert "layer4.1.conv1.weight" in caplog.text
    backbone = read_backbone(path)
    network = build_detector(architecture_on(NetworkConfig.model_validate(FORM)), 2, MSRA)
    random = load_backbone(network, backbone, partial=True)
    named = {name.removeprefix("head.") for name in random}
    assert {"layer4.1.conv1.weight", "layer4.1.conv2.weight"} <= named
    assert all(name.startswith("layer4.1.") for name in named)


def test_random_weights_are_said_and_follow_the_seed(caplog):
    model = ModelConfig(network=NetworkConfig.model_validate(FORM))
    torch.manual_seed(5)
    first, _ = prepare_for_training(model, architecture_on, 2, seed=1)
    assert "starts from random weights" in caplog.text
    torch.manual_seed(6)
    state = torch.random.get_rng_state()
    again, _ = prepare_for_training(model, architecture_on, 2, seed=1)
    other, _ = prepare_for_training(model, architecture_on, 2, seed=2)
    assert torch.random.get_rng_state().equal(state), "the global generator is left alone"
    assert first.rpn.conv.weight.equal(again.rpn.conv.weight)
    assert not first.rpn.conv.weight.equal(other.rpn.conv.weight)


def test_the_real_trunks_start_a_detector(real_data):
    for file, name, pool in (
        ("resnet18-tv-conv1-layer3", "resnet18", "torchvision"),
        ("resnet50-msra-conv1-layer3", "resnet50", "caffe"),
    ):
        path = real_data / "weights" / f"{file}.safetensors"
        network, preprocessing, _ = start_network(NetworkConfig(), str(path))
        assert (network.name, network.pool) == (name, pool)
        assert preprocessing == (TORCHVISION if name == "resnet18" else MSRA)
    config = DetectionConfig(model=ModelConfig(init=str(path), init_partial=True))
    detector, _ = prepare_for_training(config.model, config.architecture, 3, seed=0)
    kept = read_backbone(path).tensors["layer3.5.conv3.weight"]
    assert detector.state_dict()["trunk.layer3.5.conv3.weight"].equal(kept)


def test_a_shared_start_of_boxes_is_the_same_for_all_classes_and_follows_the_seed():
    def started(bbox_pred_init, seed=3):
        model = ModelConfig.model_validate(
            {"network": FORM, "bbox_pred_init": bbox_pred_init, "freeze_at": 0}
        )
        return prepare_for_training(model, architecture_on, 5, seed=seed)[0].state_dict()

    shared, apart = started("shared"), started("per_class")
    rows = shared["region_head.box_deltas.weight"].unflatten(0, (5, 4))  # (K, 4, D)
    assert rows.eq(rows[:1]).all()
    assert rows[0].std() == pytest.approx(0.03, rel=0.2)
    assert not apart["region_head.box_deltas.weight"].unflatten(0, (5, 4))[0].equal(rows[0])
    for name, tensor in shared.items():
        assert name == "region_head.box_deltas.weight" or tensor.equal(apart[name]), name
    assert started("shared")["region_head.box_deltas.weight"].equal(shared["region_head.box_deltas.weight"])
    assert not started("shared", 4)["region_head.box_deltas.weight"].equal(
        shared["region_head.box_deltas.weight"]
    )


def test_a_shared_start_of_boxes_leaves_the_context_small():
    """The whole image's feature, the same for all its regions, cannot say where one of them ends."""

    def started(context):
        model = ModelConfig.model_validate({"network": FORM, "bbox_pred_init": "shared", "freeze_at": 0})
        on = lambda network: architecture_on(network).model_copy(update={"global_context": context})  # noqa: E731
        return prepare_for_training(model, on, 5, seed=3)[0].region_head.box_deltas.weight.detach()

    with_context, without = started(True), started(False)
    own, of_image = with_context.chunk(2, dim=1)
    assert own.std().item() == pytest.approx(without.std().item(), rel=0.2)
    assert of_image.std().item() == pytest.approx(0.001, rel=0.2)
    assert not of_image[:4].equal(of_image[4:8]), "each class's own"


def test_folded_backbones_are_rescaled_whole(tmp_path, caplog):
    """conv5_x too; the detector computes the same as the file's network."""
    path = classifier_file(tmp_path / "folded.safetensors")
    tensors, metadata = read_weights(path)
    for name in tensors:
        if name.endswith("running_mean"):
            tensors[name].normal_()
            tensors[name.replace("running_mean", "running_var")].fill_(1 - FORM["eps"])
    save_weights(path, tensors, metadata)
    caplog.set_level("INFO", "detres")
    network, _ = prepare_for_training(ModelConfig(init=str(path)), architecture_on, 2, seed=0)
    assert "BN is folded into 20 convolutions; they are rescaled" in caplog.text
    for convolution in (network.trunk.layer1[0].conv1, network.region_head.body.layer4[0].conv1):
        lengths = convolution.weight.detach().flatten(1).norm(dim=1)
        torch.testing.assert_close(lengths, torch.full_like(lengths, 2**0.5))
    plain = build_detector(architecture_on(NetworkConfig.model_validate(FORM)), 2, MSRA)
    load_backbone(plain, read_backbone(path), partial=False)
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(network.trunk(images), plain.trunk(images), rtol=1e-4, atol=1e-4)
