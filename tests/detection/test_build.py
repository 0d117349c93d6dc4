"""Detectors from their own weights files: round trips, and files that do not fit."""

from __future__ import annotations

import pytest
from detectors import detect_as_is, detector_with_spread_scores, drawn_images, small_architecture
from tiny_models import read_detector

from detres.data.preprocessing import MSRA, TORCHVISION
from detres.detection.build import build_detector
from detres.detection.config import DetectionTestConfig, DetectorArchitecture
from detres.errors import WeightsError
from detres.weights.checkpoint import Metadata, save_weights

CLASS_NAMES = ("cat", "dog")


def metadata_of(architecture: DetectorArchitecture, **changes: object) -> Metadata:
    fields: dict[str, object] = {
        "task": "detection",
        "architecture": architecture.model_dump(mode="json"),
        "class_names": CLASS_NAMES,
        "preprocessing": MSRA,
        "sizes": {"short_side": 96, "long_side": 160},
    }
    return Metadata.model_validate({**fields, **changes})


@pytest.mark.parametrize(
    "sections", [{}, {"model": {"pooler": "roi_pool"}, "rpn": {"anchor_sizes": (24.0, 48.0)}}]
)
def test_a_weights_file_gives_the_same_detections(tmp_path, sections):
    test = DetectionTestConfig(score_thresh=0.02, proposals=20)
    images, _, _ = drawn_images(96, 128, 2, count=1)
    architecture = small_architecture(**sections)
    network = detector_with_spread_scores(architecture, 2, images[0], MSRA)
    save_weights(tmp_path / "model.safetensors", network.state_dict(), metadata_of(architecture))
    again, rebuilt, metadata = read_detector(tmp_path / "model.safetensors")
    assert (rebuilt, metadata.class_names, again.preprocessing) == (architecture, CLASS_NAMES, MSRA)
    assert not again.training
    before, after = (detect_as_is(n, architecture, images[0], test) for n in (network, again))
    assert len(before.scores) > 3
    assert before.boxes.equal(after.boxes)
    assert before.scores.equal(after.scores)


def test_files_that_do_not_fit_their_own_architecture_are_refused(tmp_path):
    architecture = small_architecture()
    network = build_detector(architecture, 2, TORCHVISION)
    wrong = metadata_of(architecture, class_names=("cat", "dog", "cow"))
    save_weights(tmp_path / "classes.safetensors", network.state_dict(), wrong)
    with pytest.raises(WeightsError, match=r"roi_head\.box_predictor\.cls_score\.weight"):
        read_detector(tmp_path / "classes.safetensors")
    damaged = metadata_of(architecture)
    damaged.architecture["model"]["aligned"] = "maybe"
    save_weights(tmp_path / "damaged.safetensors", network.state_dict(), damaged)
    with pytest.raises(WeightsError, match=r"architecture key model\.aligned"):
        read_detector(tmp_path / "damaged.safetensors")
