"""What the cases compare and how their data are made; truths: what was put in, and torchvision's own rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from benchmarks.operators import compare_indices, compare_maps, rpn_like_boxes

from benchmarks.evaluating import compare_figures, random_detections, random_objects
from benchmarks.loading import chosen_data, compare_objects, write_data_set
from benchmarks.training_steps import compare_losses
from detres.data.detection_samples import DetectionDataset
from detres.data.formats import DATA_VARIABLE, read_annotations
from detres.errors import UserError
from detres.evaluation.coco import evaluate_coco


def test_losses_are_compared_relative_to_their_sum():
    ours = {"a": torch.tensor(3.0), "b": torch.tensor(1.0)}
    theirs = {"a": torch.tensor(3.0), "b": torch.tensor(1.5)}
    assert compare_losses(ours, theirs, tolerance=0.2).difference == pytest.approx(0.125)
    assert compare_losses(ours, theirs, tolerance=0.2).problem == ""
    assert "more than 0.1" in compare_losses(ours, theirs, tolerance=0.1).problem


def test_maps_are_compared_relative_to_the_largest_value():
    a, b = torch.tensor([4.0, 1.0]), torch.tensor([4.0, 2.0])
    assert compare_maps([a], [b], tolerance=0.3).difference == 0.25
    assert compare_maps([a], [b], tolerance=0.2).problem
    assert compare_maps([torch.zeros(0)], [torch.zeros(0)], tolerance=0.2).problem == ""


def test_kept_boxes_must_be_the_same():
    assert compare_indices(torch.tensor([1, 2]), torch.tensor([1, 2])).problem == ""
    assert compare_indices(torch.tensor([1, 2]), torch.tensor([2, 1])).problem
    assert compare_indices(torch.tensor([1]), torch.tensor([1, 2])).problem


def test_boxes_as_an_rpn_proposes_them():
    """At the paper's sizes: as many as asked for, best first, in the picture, and most of them suppressed."""
    boxes, scores = rpn_like_boxes((600, 800), 6000)
    assert boxes.shape == (6000, 4)
    assert (scores[1:] <= scores[:-1]).all()
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 800
    assert boxes[:, 3].max() <= 600
    assert 300 <= len(torchvision.ops.nms(boxes, scores, 0.7)) <= 4000


def test_drawn_detections_have_figures_between_nothing_and_all():
    truth = random_objects(20, 7.0)
    found = random_detections(truth, 100)
    assert len(found) == 2000
    result = evaluate_coco(truth, found)
    assert result.figures["AP50"] is not None
    assert 0.02 < result.figures["AP50"] < 0.9
    assert compare_figures(result, result).problem == ""
    assert compare_figures(result, replace(result, figures={**result.figures, "AP": 0.0})).problem
    assert compare_figures(result, replace(result, figures={**result.figures, "AP": None})).problem


def test_the_written_data_set_is_read_as_it_was_made(tmp_path: Path):
    folder = write_data_set(tmp_path / "set", 40)
    annotations, report = read_annotations(folder, "train")
    assert len(annotations) == 40
    assert report.counts() == {}
    boxes = random_objects(40, 860 / 120).boxes
    assert (
        compare_objects((40, annotations.boxes.astype(np.float64)), (40, boxes.astype(np.float64))).problem
        == ""
    )
    assert DetectionDataset(annotations, 64, 96)[39].image.shape == (3, 64, 85)


def test_lost_objects_do_not_agree():
    boxes = np.zeros((3, 4))
    assert compare_objects((2, boxes), (2, boxes[:2])).problem
    assert compare_objects((2, boxes), (2, boxes + 1)).problem


def test_data_where_none_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "nowhere"))
    monkeypatch.setattr("benchmarks.loading.DRAWN_IMAGES", 4)
    assert chosen_data(None, None, tmp_path / "drawn") == (str(tmp_path / "drawn"), "train")
    with pytest.raises(UserError, match="nothing_here"):
        chosen_data("nothing_here", None, tmp_path / "drawn")
