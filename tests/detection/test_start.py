"""A detector that starts from another: what it takes over, row by row, and what it says of it.

Truth: the rows of the weights file, placed by hand.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from tiny_models import LONG_SIDE, SHORT_SIDE, write_detector, write_tiny_classifier

from benchmarks.peers.training import build_peer
from detres.config import load_config
from detres.data.formats import read_annotations
from detres.data.readers.voc import CLASS_NAMES as VOC_NAMES
from detres.data.shapes import shapes_annotations
from detres.detection.config import DetectionConfig
from detres.detection.data import TrainingData
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.start import check_start, load_pretrained_detector, start_detector
from detres.detection.task import build_task
from detres.errors import ConfigError, UserError, WeightsError
from detres.weights.checkpoint import read_weights

SETTINGS = [
    f"data.short_side={SHORT_SIDE}",
    f"data.long_side={LONG_SIDE}",
    "model.pooler=roi_align",
    "rpn.channels=32",
    "rpn.anchor_sizes=[16, 32, 64]",
    "train.workers=0",
]
SCENES = shapes_annotations("train", 2)
NAMES = SCENES.class_names


def started(init: Path | str | None, *more: str, aliases: dict[str, str] | None = None) -> FasterRCNN:
    config = load_config(DetectionConfig, None, [*SETTINGS, *more])
    model = config.model.model_copy(
        update={"init": str(init) if init else None, "init_classes": aliases or {}}
    )
    config = config.model_copy(update={"model": model})
    network = build_task(config, TrainingData(SCENES, None), torch.device("cpu"), quiet=True).network
    assert isinstance(network, FasterRCNN)
    return network


def test_rows_of_agreeing_names_are_copied(tmp_path, caplog):
    """There: (other, name 1, name 0); here: name 0, name 1, name 2...: by name, in whatever order."""
    init = write_detector(tmp_path / "a.safetensors", ("something", NAMES[1], NAMES[0]))
    tensors, _ = read_weights(init)
    with caplog.at_level(logging.INFO, "detres"):
        network = started(init)
    own = network.state_dict()
    fresh = own["region_head.class_logits.weight"][2:-1]
    assert 0.005 < fresh.std() < 0.02, "normal with 0.01"
    for kind in ("weight", "bias"):
        logits, theirs = own[f"region_head.class_logits.{kind}"], tensors[f"region_head.class_logits.{kind}"]
        assert torch.equal(logits[0], theirs[2])
        assert torch.equal(logits[1], theirs[1])
        assert torch.equal(logits[-1], theirs[-1]), "background"
        deltas, theirs = own[f"region_head.box_deltas.{kind}"], tensors[f"region_head.box_deltas.{kind}"]
        assert torch.equal(deltas[:4], theirs[8:])
        assert torch.equal(deltas[4:8], theirs[4:8])
        assert deltas[8:].abs().max() < 0.01
    for name, tensor in tensors.items():
        if not name.startswith(("region_head.class_logits", "region_head.box_deltas")):
            assert torch.equal(own[name], tensor), name
    (line,) = [message for message in caplog.messages if message.startswith("class layers:")]
    assert f"2 of {len(NAMES)} classes taken over" in line
    assert f": {NAMES[0]}, {NAMES[1]}; fresh: {NAMES[2]}, " in line


def test_the_same_classes_give_the_same_detector(tmp_path):
    init = write_detector(tmp_path / "a.safetensors", NAMES)
    own, (tensors, _) = started(init).state_dict(), read_weights(init)
    assert own.keys() == tensors.keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in tensors.items())


def test_other_names_for_the_same_class(tmp_path, caplog):
    init = write_detector(tmp_path / "a.safetensors", ("airplane", "cat"))
    with caplog.at_level(logging.INFO, "detres"):
        network = started(init, aliases={NAMES[3]: "airplane"})
    theirs = read_weights(init)[0]["region_head.class_logits.weight"]
    assert torch.equal(network.region_head.class_logits.weight[3], theirs[0])
    assert f"{NAMES[3]} (there airplane)" in caplog.text
    with pytest.raises(ConfigError, match=r"has no class 'airplan' \(did you mean 'airplane'\?\)"):
        started(init, aliases={NAMES[3]: "airplan"})
    with pytest.raises(ConfigError, match="the training data has no class 'aeroplane'"):
        started(init, aliases={"aeroplane": "airplane"})


def test_no_name_in_common(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "detres"):
        network = started(write_detector(tmp_path / "a.safetensors", ("cat", "dog")))
    assert "0 of" in caplog.text
    assert network.region_head.class_logits.weight.abs().max() < 0.1


def test_other_anchors_leave_the_rpn_fresh(tmp_path, caplog):
    init = write_detector(tmp_path / "a.safetensors", NAMES)
    network = started(init, "rpn.anchor_sizes=[16, 32]")
    tensors, _ = read_weights(init)
    assert "the RPN starts fresh" in caplog.text
    assert "anchor_sizes (16.0, 32.0, 64.0), here (16.0, 32.0)" in caplog.text
    assert not torch.equal(network.rpn.conv.weight, tensors["rpn.conv.weight"])
    assert torch.equal(network.region_head.class_logits.weight, tensors["region_head.class_logits.weight"])


def test_other_divisors_leave_the_box_layer_fresh(tmp_path, caplog):
    init = write_detector(tmp_path / "a.safetensors", NAMES)
    with caplog.at_level(logging.INFO, "detres"):
        network = started(init, "rcnn.target_stds=[1, 1, 1, 1]")
    assert "the box layer starts fresh" in caplog.text
    assert "class layer: 5 of 5 classes taken over" in caplog.text
    assert network.region_head.box_deltas.weight.abs().max() < 0.01
    tensors, _ = read_weights(init)
    assert torch.equal(network.region_head.class_logits.weight, tensors["region_head.class_logits.weight"])


def test_context_is_not_dropped_in_silence(tmp_path, caplog):
    """Weights with it need a model with it; the other way round the class layers, which take both, start fresh."""
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
    assert "the class layers start fresh: the model has global context" in caplog.text
    assert "taken over" not in caplog.text
    assert torch.equal(network.rpn.conv.weight, read_weights(plain)[0]["rpn.conv.weight"])
    assert network.region_head.class_logits.weight.std() < 0.02


def test_what_is_at_fault_is_known_before(tmp_path, caplog):
    """`check_start` refuses what `start_detector` refuses, and says nothing of what is in order."""
    detector = write_detector(tmp_path / "a.safetensors", NAMES, context=True)
    for settings, aliases in (([], {}), (["model.global_context=true"], {"nothing": NAMES[0]})):
        config = load_config(DetectionConfig, None, [*SETTINGS, *settings, f"model.init={detector}"])
        model = config.model.model_copy(update={"init_classes": aliases})
        config = config.model_copy(update={"model": model})
        for function in (check_start, start_detector):
            with pytest.raises(UserError):
                function(config, NAMES)
    caplog.clear()
    with caplog.at_level(logging.INFO, "detres"):
        settings = [*SETTINGS, "model.global_context=true", f"model.init={detector}"]
        check_start(load_config(DetectionConfig, None, settings), NAMES)
    assert not caplog.messages


def test_the_peer_takes_over_the_same(tmp_path):
    init = write_detector(tmp_path / "a.safetensors", NAMES)
    config = load_config(DetectionConfig, None, [*SETTINGS, f"model.init={init}"])
    peer, (tensors, _) = build_peer(config, NAMES), read_weights(init)
    names = {"conv": "rpn.head.conv.0.0", "objectness": "rpn.head.cls_logits"}
    for ours, theirs in names.items():
        assert torch.equal(peer.get_parameter(f"{theirs}.weight"), tensors[f"rpn.{ours}.weight"])
    logits = tensors["region_head.class_logits.weight"]  # background last, there first
    own = peer.get_parameter("roi_heads.box_predictor.cls_score.weight")
    assert torch.equal(own, logits.roll(1, dims=0))


def test_a_backbone_is_left_to_the_backbone(tmp_path):
    init = write_tiny_classifier(tmp_path / "c.safetensors")
    network = started(init)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    config = load_config(DetectionConfig, None, SETTINGS)
    for source in (str(init), None, "torchvision:resnet18"):
        load_pretrained_detector(network, config.architecture(config.model.network), NAMES, source, {})
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
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
