"""Box voting: hand-worked cases, the identity, a slow loop, empty cases (Gidaris and Komodakis 2015)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detres.boxes.geometry import box_iou
from detres.boxes.voting import vote_boxes


def boxes_of(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def labels_of(*labels: int) -> Tensor:
    return torch.tensor(labels, dtype=torch.int64)


def test_a_case_worked_by_hand():
    """IoU with the kept box: 1, 0.8 (a third of its score), 0.5 exactly (no vote), 0.8 of another class."""
    kept, labels = boxes_of([0, 0, 10, 10]), labels_of(3)
    voters = boxes_of([0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 5, 10], [0, 0, 8, 10])
    scores = torch.tensor([0.9, 0.3, 0.9, 0.9])
    voted = vote_boxes(kept, labels, voters, scores, labels_of(3, 3, 3, 1))
    torch.testing.assert_close(voted, boxes_of([0, 0, 10, (0.9 * 10 + 0.3 * 8) / 1.2]))
    assert vote_boxes(kept, labels, voters, scores, labels_of(3, 3, 3, 1), iou_thresh=0.85).equal(kept)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_identical_boxes_leave_the_box_to_the_last_bit(count):
    generator = torch.Generator().manual_seed(count)
    corners = torch.rand(20, 2, generator=generator) * 300
    kept = torch.cat((corners, corners + torch.rand(20, 2, generator=generator) * 50 + 1), dim=1)
    labels = torch.arange(20)
    voters, scores = kept.repeat(count, 1), torch.rand(20 * count, generator=generator)
    assert vote_boxes(kept, labels, voters, scores, labels.repeat(count)).equal(kept)


def slow_vote(kept, labels, voters, scores, voter_labels):
    voted = []
    for box, label in zip(kept.double(), labels, strict=True):
        total, mean = 0.0, torch.zeros(4, dtype=torch.float64)
        for voter, score, of_voter in zip(voters.double(), scores.double(), voter_labels, strict=True):
            if of_voter == label and box_iou(box[None], voter[None]).item() > 0.5:
                total, mean = total + max(0.0, score.item()), mean + max(0.0, score.item()) * voter
        voted.append(mean / total if total > 0 else box)
    return torch.stack(voted).float()


def test_equals_the_obvious_loop():
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(60, 2, generator=generator) * 20
    voters = torch.cat((corners, corners + 15 + torch.rand(60, 2, generator=generator) * 10), dim=1)
    scores, labels = torch.rand(60, generator=generator) - 0.2, torch.arange(60) % 3
    voted = vote_boxes(voters[:9], labels[:9], voters, scores, labels)
    torch.testing.assert_close(voted, slow_vote(voters[:9], labels[:9], voters, scores, labels))
    assert not torch.allclose(voted, voters[:9], atol=0.1)


def test_a_box_without_voters_stays():
    kept = boxes_of([5, 5, 5, 9], [0, 0, 4, 4])  # no area: it overlaps nothing, itself included
    voters, scores = torch.cat((kept, boxes_of([50, 50, 60, 60]))), torch.tensor([0.9, -0.5, 0.5])
    assert vote_boxes(kept, labels_of(0, 0), voters, scores, labels_of(0, 0, 0)).equal(kept)


def test_nothing_to_vote_on():
    nothing, scores, labels = boxes_of(), torch.zeros(0), labels_of()
    assert vote_boxes(nothing, labels, nothing, scores, labels).shape == (0, 4)
    assert vote_boxes(nothing, labels, boxes_of([0, 0, 1, 1]), torch.ones(1), labels_of(0)).shape == (0, 4)
    alone = boxes_of([0, 0, 1, 1])
    assert vote_boxes(alone, labels_of(0), nothing, scores, labels).equal(alone)
