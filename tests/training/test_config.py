"""Lengths and rates counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from detres.config import Length, describe_keys, load_config, to_yaml
from detres.errors import ConfigError, DataError
from detres.training.config import FREE_AT_RESUME, TrainConfig, make_plan


def test_epochs_are_counted_in_steps_and_rounded_up() -> None:
    config = TrainConfig(
        batch=2,
        accumulate=2,
        length=Length.parse("3 epochs"),
        milestones=(Length.parse("1 epochs"), Length.parse("5 iterations")),
        evaluate_every=None,
        checkpoint_every=Length.parse("2 epochs"),
        lr=0.01,
        base_batch_size=16,
    )
    plan = make_plan(config, 7)  # 4 images a step; 21 / 4, 7 / 4, 14 / 4 steps
    assert (plan.iterations, plan.milestones, plan.checkpoint_every) == (6, (2, 5), 4)
    assert plan.evaluate_every is None
    assert plan.images_per_step == 4
    assert plan.rate == pytest.approx(0.01 / 4)
    assert plan.epoch(7) == 4.0


def test_no_images_and_unordered_milestones() -> None:
    with pytest.raises(DataError, match="no images"):
        make_plan(TrainConfig(), 0)
    config = TrainConfig(milestones=(Length.parse("9 iterations"), Length.parse("5 iterations")))
    with pytest.raises(ConfigError, match="9 iterations, 5 iterations do not rise"):
        make_plan(config, 7)


def test_shares_of_the_run() -> None:
    lengths = {name: Length.parse(text) for name, text in (("a", "50 %"), ("b", "75 %"), ("c", "1 %"))}
    config = TrainConfig(
        length=Length.parse("8 epochs"),
        milestones=(lengths["a"], lengths["b"]),
        evaluate_every=lengths["c"],
        batch=128,
    )
    plan = make_plan(config, 50_000)  # 3125 steps
    assert (plan.iterations, plan.milestones, plan.evaluate_every) == (3125, (1563, 2344), 32)
    with pytest.raises(ValueError, match="length is 50 % of itself"):
        TrainConfig(length=lengths["a"])
    with pytest.raises(ValueError, match="plateau looks at evaluations: set evaluate_every"):
        TrainConfig(schedule="plateau", evaluate_every=None)


def test_goes_through_yaml(tmp_path: Path) -> None:
    config = TrainConfig(milestones=(Length.parse("8 epochs"),), ema=0.999)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(TrainConfig, tmp_path / "config.yaml") == config


def test_keys_are_described() -> None:
    keys = describe_keys(TrainConfig)
    assert all(description for _, _, _, description in keys)
    assert {key for key, _, _, _ in keys} >= FREE_AT_RESUME
