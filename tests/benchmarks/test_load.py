"""Other processes' share of the machine; truths: hand-worked readings."""

from __future__ import annotations

import math

import pytest
from benchmarks.load import CpuTimes, other_load, read_cpu_times

from benchmarks import load


def test_what_is_busy_and_not_our_own_is_other_load():
    # 2 s on 2 cores: 4 core seconds, 3 of them busy, 2 of those ours; others took 1 of 4
    assert other_load(CpuTimes(10.0, 100.0, 5.0), CpuTimes(12.0, 103.0, 7.0), cores=2) == 0.25


def test_coarse_counters_do_not_give_shares_below_zero_or_above_one():
    assert other_load(CpuTimes(0.0, 0.0, 0.0), CpuTimes(1.0, 0.9, 1.0), cores=1) == 0
    assert other_load(CpuTimes(0.0, 0.0, 0.0), CpuTimes(1.0, 1.1, 0.0), cores=1) == 1


@pytest.mark.parametrize("busy", [(None, 1.0), (1.0, None)])
def test_nothing_is_known_without_the_counters(busy: tuple[float | None, float | None]):
    assert other_load(CpuTimes(0.0, busy[0], 0.0), CpuTimes(1.0, busy[1], 0.0), cores=1) is None


def test_the_counters_may_be_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(load, "STAT", tmp_path / "stat")
    assert read_cpu_times().busy is None


def test_columns_of_the_counters(monkeypatch, tmp_path):
    """The columns: user nice system idle iowait irq softirq steal, then guests, which are in user already."""
    monkeypatch.setattr(load, "STAT", tmp_path / "stat")
    (tmp_path / "stat").write_text("cpu  100 20 30 9999 999 4 5 6 50 50\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    monkeypatch.setattr(load.os, "sysconf", lambda name: 100)
    assert read_cpu_times().busy == 1.65


def test_our_own_work_is_counted():
    before = read_cpu_times()
    sum(math.sqrt(number) for number in range(300_000))
    after = read_cpu_times()
    assert 0 < after.own - before.own <= after.wall - before.wall + 0.05
