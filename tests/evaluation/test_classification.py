"""Top-k errors and cross entropy: cases worked by hand, torch's own functions, ties, NaN, nothing at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from detres.evaluation.classification import cross_entropy, top_k_error


def test_case_worked_by_hand():
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.2, 0.3, 0.5]])
    labels = np.array([1, 1, 2, 0])
    assert top_k_error(scores, labels, 1) == 0.5
    assert top_k_error(scores, labels, 2) == 0.25


def test_random_scores_agree_with_torch():
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(200, 12, generator=generator)
    labels = torch.randint(12, (200,), generator=generator)
    for k in (1, 5):
        expected = 1 - (logits.topk(k).indices == labels[:, None]).any(1).double().mean().item()
        assert top_k_error(logits.numpy(), labels.numpy(), k) == pytest.approx(expected)
    assert cross_entropy(logits.numpy(), labels.numpy()) == pytest.approx(
        F.cross_entropy(logits, labels).item(), rel=1e-5
    )


def test_equal_scores_rank_by_label():
    scores = np.zeros((4, 4))
    assert top_k_error(scores, np.arange(4), 1) == 0.75
    assert top_k_error(scores, np.arange(4), 3) == 0.25


def test_nan_is_an_error_and_large_logits_are_no_overflow():
    scores = np.array([[np.nan, 0.0, 1.0], [2.0, np.nan, 1.0]])
    assert top_k_error(scores, np.array([2, 0]), 1) == 1.0
    assert cross_entropy(np.array([[1e4, 0.0]], np.float32), np.array([1])) == 1e4


def test_what_does_not_exist_is_none():
    assert top_k_error(np.zeros((0, 10)), np.zeros(0, np.int64), 1) is None
    assert top_k_error(np.zeros((3, 5)), np.zeros(3, np.int64), 5) is None
    assert cross_entropy(np.zeros((0, 10)), np.zeros(0, np.int64)) is None
