"""What a detector's training starts from: a backbone, whole or in part, or a detector, row by row.

Truth: the tensors of the weights file, placed by hand.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from tiny_models import LONG_SIDE, SHORT_SIDE, write_detector, write_tiny_classifier

from detres.config import load_config
from detres.data.formats import read_annotations
from detres.data.preprocessing import MSRA, TORCHVISION
from detres.data.readers.voc import VOC_CLASSES as VOC_NAMES
from detres.data.shape_forms import SHAPE_CLASSES as NAMES
from detres.detection.build import build_detector
from detres.detection.config import DetectionConfig, DetectionModelConfig, DetectorArchitecture
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.start import check_pretrained, load_backbone, start_detector
from detres.errors import ConfigError, UserError, WeightsError
from detres.networks.config import NetworkConfig
from detres.networks.resnet import build_network
from detres.tasks.start import Start, read_start
from detres.weights.checkpoint import Metadata, read_weights, save_weights
from detres.weights.foreign import read_backbone

FORM = {"name": "resnet18", "width": 0.125, "stride_in": "3x3", "pool": "caffe", "eps": 2e-5}
SETTINGS = [
    f"data.short_side={SHORT_SIDE}",
    f"data.long_side={LONG_SIDE}",
    "model.pooler=roi_align",
    "rpn.channels=32",
    "rpn.anchor_sizes=[16, 32, 64]",
]
Arguments = tuple[DetectionModelConfig, DetectorArchitecture, Start, tuple[str, ...]]


def arguments_for(init: Path | None, *more: str, aliases: dict[str, str] | None = None) -> Arguments:
    """The arguments of `check_pretrained` for weights to start from and settings."""
    config = load_config(DetectionConfig, None, [*SETTINGS, *more])
    settings = {"init": str(init) if init else None, "init_classes": aliases or {}}
    model = config.model.model_copy(update=settings)
    start = read_start(model.network, model.init)
    return model, config.architecture(start.network), start, NAMES


def started(
    init: Path | None, *more: str, aliases: dict[str, str] | None = None, seed: int = 0
) -> FasterRCNN:
    return start_detector(*arguments_for(init, *more, aliases=aliases), seed=seed)


def classifier_file(path: Path, *, without: str | None = None) -> Path:
    """The weights of a classification network made here, less the tensors whose names start with `without`."""
    torch.manual_seed(1)
    config = NetworkConfig.model_validate(FORM)
    tensors = build_network(config, 4).state_dict()
    kept = {name: tensor for name, tensor in tensors.items() if not (without and name.startswith(without))}
    metadata = Metadata(
        task="classification",
        architecture={"network": config.model_dump(mode="json")},
        class_names=("a", "b", "c", "d"),
        preprocessing=MSRA,
        sizes={"crop": 64},
    )
    save_weights(path, kept, metadata)
    return path


def plain_detector() -> FasterRCNN:
    """On a network of the form of `classifier_file`'s."""
    network = NetworkConfig.model_validate(FORM)
    config = load_config(DetectionConfig, None, SETTINGS)
    return build_detector(config.architecture(network), 2, MSRA)


def test_a_backbone_goes_into_trunk_and_head(tmp_path):
    path = classifier_file(tmp_path / "backbone.safetensors")
    model, architecture, start, names = arguments_for(path)
    assert architecture.model.network.width == FORM["width"]
    network = start_detector(model, architecture, start, names, seed=3)
    tensors, expected = network.state_dict(), read_backbone(path).tensors
    assert tensors["trunk.layer3.1.conv2.weight"].equal(expected["layer3.1.conv2.weight"])
    assert tensors["roi_head.body.layer4.0.bn1.weight"].equal(expected["layer4.0.bn1.weight"])
    frozen = {name.split(".")[1] for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}
    assert not any("bn" in name for name, _ in network.named_parameters()), "frozen BN has no parameters"


def test_missing_weights_are_an_error_or_listed(tmp_path, caplog):
    path = classifier_file(tmp_path / "partial.safetensors", without="layer4.1.conv")
    with pytest.raises(WeightsError, match=r"lacks layer4\.1\.conv1\.weight.*init_partial: true"):
        started(path)
    with caplog.at_level("INFO", "detres"):
        started(path, "model.init_partial=true")
    assert "layer4.1.conv1.weight" in caplog.text
    random = load_backbone(plain_detector(), read_backbone(path), partial=True)
    named = {name.removeprefix("head.") for name in random}
    assert {"layer4.1.conv1.weight", "layer4.1.conv2.weight"} <= named
    assert all(name.startswith("layer4.1.") for name in named)


NARROW = "model.network={name: resnet18, width: 0.125}"


def test_random_weights_are_said_and_follow_the_seed(caplog):
    torch.manual_seed(5)
    first = started(None, NARROW, seed=1)
    assert "starts from random weights" in caplog.text
    torch.manual_seed(6)
    state = torch.random.get_rng_state()
    again, other = started(None, NARROW, seed=1), started(None, NARROW, seed=2)
    assert torch.random.get_rng_state().equal(state), "the global generator is left alone"
    assert first.rpn.conv.weight.equal(again.rpn.conv.weight)
    assert not first.rpn.conv.weight.equal(other.rpn.conv.weight)


def test_the_real_trunks_start_a_detector(real_data):
    for file, name, pool in (
        ("resnet18-tv-conv1-layer3", "resnet18", "torchvision"),
        ("resnet50-msra-conv1-layer3", "resnet50", "caffe"),
    ):
        path = real_data / "weights" / f"{file}.safetensors"
        start = read_start(NetworkConfig(), str(path))
        assert (start.network.name, start.network.pool) == (name, pool)
        assert start.preprocessing == (TORCHVISION if name == "resnet18" else MSRA)
    detector = started(path, "model.init_partial=true")
    kept = read_backbone(path).tensors["layer3.5.conv3.weight"]
    assert detector.state_dict()["trunk.layer3.5.conv3.weight"].equal(kept)


CLS_SCORE = "roi_head.box_predictor.cls_score.weight"
BBOX_PRED = "roi_head.box_predictor.bbox_pred.weight"


def test_a_shared_initialization_is_the_same_for_all_classes_and_follows_the_seed():
    def initialized(bbox_pred_init, seed=3):
        return started(None, NARROW, f"model.bbox_pred_init={bbox_pred_init}", seed=seed).state_dict()

    shared, per_class = initialized("shared"), initialized("per_class")
    rows = shared[BBOX_PRED].unflatten(0, (len(NAMES), 4))  # (K, 4, D)
    assert rows.eq(rows[:1]).all()
    assert rows[0].std() == pytest.approx(0.03, rel=0.2)
    assert not per_class[BBOX_PRED].unflatten(0, (len(NAMES), 4))[0].equal(rows[0])
    for name, tensor in shared.items():
        assert name == BBOX_PRED or tensor.equal(per_class[name]), name
    assert initialized("shared")[BBOX_PRED].equal(shared[BBOX_PRED])
    assert not initialized("shared", 4)[BBOX_PRED].equal(shared[BBOX_PRED])


def test_a_shared_initialization_leaves_the_context_small():
    """The whole image's feature, the same for all its regions, cannot say where one of them ends."""

    def initialized(context):
        settings = (NARROW, "model.bbox_pred_init=shared", f"model.global_context={str(context).lower()}")
        return started(None, *settings, seed=3).state_dict()[BBOX_PRED]

    with_context, without = initialized(True), initialized(False)
    own, context = with_context.chunk(2, dim=1)
    assert own.std().item() == pytest.approx(without.std().item(), rel=0.2)
    assert context.std().item() == pytest.approx(0.001, rel=0.2)
    assert not context[:4].equal(context[4:8]), "each class's own"


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
    network = started(path)
    assert "BN is folded into 20 convolutions; they are rescaled" in caplog.text
    for convolution in (network.trunk.layer1[0].conv1, network.roi_head.body.layer4[0].conv1):
        lengths = convolution.weight.detach().flatten(1).norm(dim=1)
        torch.testing.assert_close(lengths, torch.full_like(lengths, 2**0.5))
    plain = plain_detector()
    load_backbone(plain, read_backbone(path), partial=False)
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(network.trunk(images), plain.trunk(images), rtol=1e-4, atol=1e-4)


def test_rows_of_agreeing_names_are_copied(tmp_path, caplog):
    """There: (other, name 1, name 0); here: name 0, name 1, name 2...: by name, in whatever order."""
    init = write_detector(tmp_path / "a.safetensors", ("something", NAMES[1], NAMES[0]))
    tensors, _ = read_weights(init)
    with caplog.at_level(logging.INFO, "detres"):
        network = started(init)
    own, predictor = network.state_dict(), "roi_head.box_predictor"
    fresh = own[f"{predictor}.cls_score.weight"][2:-1]
    assert 0.005 < fresh.std() < 0.02, "normal with 0.01"
    for kind in ("weight", "bias"):
        logits, theirs = own[f"{predictor}.cls_score.{kind}"], tensors[f"{predictor}.cls_score.{kind}"]
        assert torch.equal(logits[0], theirs[2])
        assert torch.equal(logits[1], theirs[1])
        assert torch.equal(logits[-1], theirs[-1]), "background"
        deltas, theirs = own[f"{predictor}.bbox_pred.{kind}"], tensors[f"{predictor}.bbox_pred.{kind}"]
        assert torch.equal(deltas[:4], theirs[8:])
        assert torch.equal(deltas[4:8], theirs[4:8])
        assert deltas[8:].abs().max() < 0.01
    for name, tensor in tensors.items():
        if not name.startswith(predictor):
            assert torch.equal(own[name], tensor), name
    (line,) = [message for message in caplog.messages if message.startswith("class and box layers:")]
    assert f"rows of 2 of {len(NAMES)} classes are copied from {init}: {NAMES[0]}, {NAMES[1]};" in line
    assert f"re-initialized: {NAMES[2]}, " in line


def test_the_same_classes_give_the_same_detector(tmp_path):
    init = write_detector(tmp_path / "a.safetensors", NAMES)
    own, (tensors, _) = started(init).state_dict(), read_weights(init)
    assert own.keys() == tensors.keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in tensors.items())


def test_other_names_for_the_same_class(tmp_path, caplog):
    init = write_detector(tmp_path / "a.safetensors", ("airplane", "cat"))
    with caplog.at_level(logging.INFO, "detres"):
        network = started(init, aliases={NAMES[3]: "airplane"})
    theirs = read_weights(init)[0][CLS_SCORE]
    assert torch.equal(network.roi_head.box_predictor.cls_score.weight[3], theirs[0])
    assert f"{NAMES[3]} (there airplane)" in caplog.text
    with pytest.raises(ConfigError, match=r"has no class 'airplan' \(did you mean 'airplane'\?\)"):
        started(init, aliases={NAMES[3]: "airplan"})
    with pytest.raises(ConfigError, match="the training data has no class 'aeroplane'"):
        started(init, aliases={"aeroplane": "airplane"})


def test_no_name_in_common(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "detres"):
        network = started(write_detector(tmp_path / "a.safetensors", ("cat", "dog")))
    assert f"rows of 0 of {len(NAMES)} classes" in caplog.text
    assert network.roi_head.box_predictor.cls_score.weight.abs().max() < 0.1


def test_other_anchors_re_initialize_the_rpn(tmp_path, caplog):
    init = write_detector(tmp_path / "a.safetensors", NAMES)
    network = started(init, "rpn.anchor_sizes=[16, 32]")
    tensors, _ = read_weights(init)
    assert "the RPN is re-initialized" in caplog.text
    assert "anchor_sizes (16.0, 32.0, 64.0), here (16.0, 32.0)" in caplog.text
    assert not torch.equal(network.rpn.conv.weight, tensors["rpn.conv.weight"])
    assert torch.equal(network.roi_head.box_predictor.cls_score.weight, tensors[CLS_SCORE])


def test_other_target_stds_re_initialize_the_box_layer(tmp_path, caplog):
    init = write_detector(tmp_path / "a.safetensors", NAMES)
    with caplog.at_level(logging.INFO, "detres"):
        network = started(init, "rcnn.target_stds=[1, 1, 1, 1]")
    assert "the box layer is re-initialized" in caplog.text
    assert "class layer: rows of 5 of 5 classes are copied" in caplog.text
    assert network.roi_head.box_predictor.bbox_pred.weight.abs().max() < 0.01
    tensors, _ = read_weights(init)
    assert torch.equal(network.roi_head.box_predictor.cls_score.weight, tensors[CLS_SCORE])


def test_context_is_not_dropped_in_silence(tmp_path, caplog):
    """Weights with it need a model with it. The other way round, class and box layers are re-initialized."""
    context = write_detector(tmp_path / "context.safetensors", NAMES, context=True)
    with pytest.raises(
        WeightsError, match=r"context\.safetensors: .*the model has none: set model\.global_context: true"
    ) as caught:
        started(context)
    assert len(str(caught.value).splitlines()) == 1
    own, (tensors, _) = started(context, "model.global_context=true").state_dict(), read_weights(context)
    assert all(torch.equal(own[name], tensor) for name, tensor in tensors.items())
    plain = write_detector(tmp_path / "plain.safetensors", NAMES)
    caplog.clear()
    with caplog.at_level(logging.INFO, "detres"):
        network = started(plain, "model.global_context=true")
    assert "the class and box layers are re-initialized: the model has global context" in caplog.text
    assert "are copied" not in caplog.text
    assert torch.equal(network.rpn.conv.weight, read_weights(plain)[0]["rpn.conv.weight"])
    assert network.roi_head.box_predictor.cls_score.weight.std() < 0.02


def test_what_is_at_fault_is_known_before(tmp_path, caplog):
    """`check_pretrained` refuses what `start_detector` refuses, and says nothing of what is in order."""
    detector = write_detector(tmp_path / "a.safetensors", NAMES, context=True)
    context = "model.global_context=true"
    for settings, aliases in (([], {}), ([context], {"nothing": NAMES[0]})):
        arguments = arguments_for(detector, *settings, aliases=aliases)
        with pytest.raises(UserError):
            check_pretrained(*arguments)
        with pytest.raises(UserError):
            start_detector(*arguments, seed=0)
    caplog.clear()
    with caplog.at_level(logging.INFO, "detres"):
        assert check_pretrained(*arguments_for(detector, context)) is not None
    assert not caplog.messages


def test_a_backbone_is_no_detector(tmp_path):
    init = write_tiny_classifier(tmp_path / "c.safetensors")
    assert check_pretrained(*arguments_for(init)) is None
    assert check_pretrained(*arguments_for(None)) is None
    with pytest.raises(ConfigError, match=r"c\.safetensors is no detector's weights"):
        started(init, aliases={NAMES[0]: "a"})


def test_every_class_of_voc_is_one_of_cocos_by_the_recipes_table(real_data):
    """Truth: COCO's own 80 names and VOC's 20."""
    coco, _ = read_annotations(real_data / "coco_val50", None)
    for name in ("r101_c4_plus.yaml", "r101_c4_plus_07pp12.yaml"):
        recipe = Path(__file__).resolve().parents[2] / "configs" / "voc" / name
        other = load_config(DetectionConfig, recipe).model.init_classes
        assert {other.get(name, name) for name in VOC_NAMES} < set(coco.class_names)
        assert set(other) == set(VOC_NAMES) - set(coco.class_names)
