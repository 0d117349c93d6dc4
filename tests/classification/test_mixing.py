"""Soft targets against cases worked by hand and against targets written out; nothing where all is off."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from detres.classification.config import ClassificationConfig
from detres.classification.mixing import MixingConfig, mix, overlay, paste, soft_cross_entropy
from detres.classification.task import build_classifier_task, prepare_classifier
from detres.config import load_config

CPU = torch.device("cpu")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_smoothed_and_mixed_loss_by_hand():
    """Two classes, log softmax (-ln 4, -ln 4/3): e = 0.2 makes the target (0.9, 0.1); a share of 0.75 of it."""
    logits = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]])
    labels, partners = torch.tensor([0, 0]), torch.tensor([1, 0])
    low, high = math.log(4), math.log(4 / 3)
    plain = soft_cross_entropy(logits, labels, partners, 1.0, 0.0)
    assert plain.item() == pytest.approx((low + high) / 2)
    smoothed = soft_cross_entropy(logits, labels, partners, 1.0, 0.2)
    assert smoothed.item() == pytest.approx((0.9 * low + 0.1 * high + 0.9 * high + 0.1 * low) / 2)
    labels = torch.tensor([0, 1])
    mixed = soft_cross_entropy(logits, labels, partners, 0.75, 0.0)  # both are wrong: their own class has 1/4
    assert mixed.item() == pytest.approx(0.75 * low + 0.25 * high)


def test_loss_is_that_of_the_targets_written_out():
    logits = torch.randn(6, 5, generator=seeded(0))
    labels, partners = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([5, 4, 3, 2, 1, 0])
    own = 0.9 * F.one_hot(labels, 5) + 0.1 / 5
    targets = 0.3 * own + 0.7 * own[partners]
    expected = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(soft_cross_entropy(logits, labels, partners, 0.3, 0.1), expected)


def test_overlay_by_hand():
    inputs = torch.tensor([0.0, 10.0, 20.0]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    mixed = overlay(inputs, torch.tensor([1, 2, 0]), 0.75)
    assert mixed[:, 0, 0, 0].tolist() == [2.5, 12.5, 15.0]


@pytest.mark.parametrize(
    ("center", "rows", "columns", "share"),
    [
        ((0.5, 0.5), (2, 6), (2, 6), 0.75),  # a quarter of 8 x 8 is 4 x 4
        ((0.0, 0.5), (0, 2), (2, 6), 0.875),  # half of it is cut off, and counts for the picture
        ((1.0, 1.0), (6, 8), (6, 8), 0.9375),
    ],
)
def test_paste_by_hand(center, rows, columns, share):
    inputs = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    mixed = paste(inputs, torch.tensor([1, 0]), 0.75, center)
    expected = torch.zeros(3, 8, 8)
    expected[:, rows[0] : rows[1], columns[0] : columns[1]] = 1
    assert torch.equal(mixed.inputs[0], expected)
    assert torch.equal(mixed.inputs[1], 1 - expected)
    assert mixed.share == share == 1 - expected.mean().item()


@pytest.mark.parametrize("config", [MixingConfig(mixup=0.4), MixingConfig(cutmix=1.0)])
def test_share_is_what_is_left_of_each_image(config):
    """Pictures of one value each: what is mixed in shows in the mean."""
    inputs = torch.tensor([1.0, 2.0, 4.0, 8.0]).view(4, 1, 1, 1).expand(4, 3, 16, 16).contiguous()
    shares = []
    for seed in range(200):
        mixed = mix(inputs, config, seeded(seed))
        assert sorted(mixed.partners.tolist()) == [0, 1, 2, 3]
        expected = mixed.share * inputs + (1 - mixed.share) * inputs[mixed.partners]
        torch.testing.assert_close(mixed.inputs.mean(dim=(1, 2, 3)), expected.mean(dim=(1, 2, 3)))
        shares.append(mixed.share)
    mean = torch.tensor(shares).mean().item()
    assert 0.4 < mean < 0.8
    again = mix(inputs, config, seeded(7))
    assert torch.equal(again.inputs, mix(inputs, config, seeded(7)).inputs)


def test_each_batch_takes_one_of_the_two():
    inputs = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 16, 16).contiguous()
    both = MixingConfig(mixup=1.0, cutmix=1.0)
    values = [mix(inputs, both, seeded(seed)).inputs.unique().tolist() for seed in range(60)]
    pasted = sum(set(found) <= {0.0, 1.0} for found in values)
    assert 20 < pasted < 58  # half by CutMix; and half of all permutations of two change nothing


def test_nothing_where_all_is_off():
    inputs = torch.randn(3, 3, 4, 4)
    generator = seeded(0)
    before = generator.get_state()
    mixed = mix(inputs, MixingConfig(label_smoothing=0.1), generator)
    assert mixed.inputs is inputs
    assert mixed.share == 1.0
    assert torch.equal(generator.get_state(), before)


def test_training_step_uses_them():
    settings = (
        "data={train: [{dir: 'shapes:8'}], crop: {size: 32, train_sides: [32, 32], test_side: 32}}",
        "model.network={name: resnet18, width: 0.125}",
        "train.workers=0",
    )
    found = {}
    for name, mixing in (("plain", "{}"), ("soft", "{label_smoothing: 0.1, mixup: 0.2, cutmix: 1.0}")):
        config = load_config(ClassificationConfig, None, [*settings, f"data.mixing={mixing}"])
        task = build_classifier_task(prepare_classifier(config, CPU), CPU)
        batch = task.collate([task.dataset[0, index] for index in range(8)])
        first, again = (task.losses(batch, seeded(3)) for _ in range(2))
        found[name] = first["class"].item()
        assert found[name] == pytest.approx(again["class"].item(), rel=1e-4)
        assert set(first) == {"class", "top1_error"}
    assert found["plain"] != found["soft"]
