"""The measured detector and its pictures: the same at each call; the composition without padding is ours."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.detectors import DetectorOptions, RawOutputs, draw_samples, random_detector
from benchmarks.inferring import compare_detections, infer_cases
from detres.detection.postprocess import Detections

OPTIONS = DetectorOptions(network="resnet18", size=(72, 104), proposals=12, precisions=("float32",))


def test_everything_is_made_from_the_seed():
    first, second = random_detector(OPTIONS).state_dict(), random_detector(OPTIONS).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    once, again = (draw_samples((72, 104), 3, "cpu") for _ in range(2))
    assert all(torch.equal(a.image, b.image) for a, b in zip(once, again, strict=True))
    assert all(len(sample.boxes) >= 1 and (sample.boxes[:, 2] <= 104).all() for sample in once)


def test_anchors_follow_the_size_of_the_images():
    assert DetectorOptions().architecture.rpn.anchor_sizes == (128, 256, 512)
    assert DetectorOptions(size=(400, 300)).architecture.rpn.anchor_sizes == (64, 128, 256)


def test_torchvision_does_the_same_in_images_that_it_would_pad():
    """72 x 104 is no multiple of 32; there are detections to compare."""
    (case,) = infer_cases(OPTIONS)
    ours = case.ours().get_answer()
    assert len(ours[0].scores) >= 3
    for prepare in case.peers["torchvision"].values():
        agreement = case.compare(ours, prepare().get_answer())
        assert agreement.problem == ""
        assert agreement.difference < 0.01


def detections(*rows: tuple[float, float, int]) -> list[Detections]:
    """Of (left side of a 10 px box, score, label)."""
    boxes = torch.tensor([[left, 0.0, left + 10, 10.0] for left, _, _ in rows])
    return [Detections(boxes, torch.tensor([row[1] for row in rows]), torch.tensor([row[2] for row in rows]))]


def test_detections_are_paired_whatever_their_order():
    a = detections((0, 0.9, 1), (50, 0.8, 2), (90, 0.7, 2))
    b = detections((50.03125, 0.8, 2), (0, 0.9, 1), (90, 0.7, 2))
    assert compare_detections(a, b) == compare_detections(b, a)
    assert compare_detections(a, b).difference == 0.03125
    assert compare_detections(a, b).problem == ""


@pytest.mark.parametrize(
    "other", [(1.0, 0.9, 1), (0.0, 0.8, 1), (0.0, 0.9, 2)], ids=["place", "score", "class"]
)
def test_detections_that_differ_are_counted(other: tuple[float, float, int]):
    a, b = detections(*[(0.0, 0.9, 1)] * 3), detections(*[other] * 3)
    assert "6 of 6" in compare_detections(a, b).problem


def test_bfloat16_is_compared_before_suppression():
    """Rounding is within the tolerance, another region head is not."""
    (case,) = infer_cases(replace(OPTIONS, precisions=("bfloat16",)))
    ours = case.ours().get_answer()
    exact = infer_cases(OPTIONS)[0].compare
    assert isinstance(ours, RawOutputs)
    assert case.compare is not exact
    for prepare in case.peers["torchvision"].values():
        theirs = prepare().get_answer()
        assert 0 < case.compare(ours, theirs).difference < 0.1
        assert "logits" in case.compare(ours, theirs._replace(logits=theirs.logits.flip(0))).problem


def test_no_detections_agree():
    nothing = [Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))]
    assert compare_detections(nothing, nothing).problem == ""
