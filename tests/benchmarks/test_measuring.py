"""Medians, dropping, turns and agreement; truths: hand-worked numbers and runs that note their order."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.cases import Case, Prepare, Prepared, within
from benchmarks.measuring import DisagreementError, measure, sample_in_turns, summarize
from benchmarks.sampling import Sample
from benchmarks.tables import SideResult, Times, as_json, duration, print_table


def test_median_and_range_of_the_samples():
    times = summarize([Sample(3.0, 0.0), Sample(1.0, 0.01), Sample(2.0, None)])
    assert times == Times(median=2.0, fastest=1.0, slowest=3.0, samples=3, dropped=0, disturbed=False)


def test_disturbed_samples_are_dropped():
    times = summarize([Sample(1.0, 0.05), Sample(9.0, 0.06), Sample(2.0, 0.0)])
    assert times == Times(median=1.5, fastest=1.0, slowest=2.0, samples=2, dropped=1, disturbed=False)


def test_where_every_sample_is_disturbed_all_are_kept_and_it_is_said():
    times = summarize([Sample(1.0, 0.5), Sample(3.0, 0.6)])
    assert times == Times(median=2.0, fastest=1.0, slowest=3.0, samples=2, dropped=0, disturbed=True)


class Noted:
    """A side that notes its samples; the n-th takes n seconds."""

    def __init__(self, name: str, calls: list[str], first: float = 1.0) -> None:
        self.name, self.calls, self.seconds = name, calls, first

    def sample(self) -> Sample:
        self.calls.append(self.name)
        self.seconds += 1
        return Sample(self.seconds - 1, 0.0)

    def peak_mib(self) -> float:
        return 7.0

    def close(self) -> None:
        self.calls.append(f"{self.name} ended")


def test_samples_are_taken_in_turns():
    calls: list[str] = []
    samples = sample_in_turns({name: Noted(name, calls) for name in ("a", "b")}, 3)
    assert calls == ["a", "b"] + ["a", "b"] * 3  # a warm-up of each first
    assert [sample.seconds for sample in samples["a"]] == [2, 3, 4]


def case_of(ours: float, theirs: float, tolerance: float = 0.1, units: int = 1) -> Case:
    def prepare(value: float) -> Prepare:
        return lambda: Prepared(lambda: value)

    return Case(
        "numbers",
        prepare(ours),
        {"peer": {"one": prepare(theirs), "two": prepare(theirs)}},
        compare=lambda a, b: within(abs(a - b), tolerance, "numbers"),
        units=units,
    )


def test_a_case_is_measured():
    """The peer's form two is the faster one; form one is ended at once, the others after the last sample."""
    calls: list[str] = []
    started = iter([("detres", 2.0), ("peer one", 9.0), ("peer two", 4.0)])

    def start(side: str, prepare: Prepare) -> Noted:
        name, first = next(started)
        return Noted(name, calls, first)

    ours, peer = measure(case_of(1.0, 1.0625, units=2), 2, ceiling=None, start=start, quiet=True)
    assert calls[:3] == ["peer one", "peer two", "peer one ended"]
    assert calls[3:5] == ["detres", "peer two"]  # warm-up
    assert calls.count("peer one") == 1
    assert sorted(calls[-2:]) == ["detres ended", "peer two ended"]
    assert (ours.name, ours.form, ours.difference, ours.operations, ours.peak_mib) == (
        "detres",
        "",
        0.0,
        None,
        7.0,
    )
    assert (ours.times.median, ours.times.samples) == ((3 + 4) / 2 / 2, 2)
    assert (peer.name, peer.form, peer.difference) == ("peer", "two", 0.0625)
    assert peer.times.median == (6 + 7) / 2 / 2


def test_where_a_form_fails_those_that_run_are_ended():
    calls: list[str] = []

    started = iter(["detres", "peer one"])

    def start(side: str, prepare: Prepare) -> Noted:
        name = next(started, None)
        if name is None:
            raise EOFError("no memory left")
        return Noted(name, calls)

    with pytest.raises(EOFError):
        measure(case_of(1.0, 1.0), 1, ceiling=None, start=start, quiet=True)
    assert sorted(calls) == ["detres ended", "peer one ended"]


def test_disagreement_is_an_error_that_names_both():
    with pytest.raises(DisagreementError, match=r"numbers: peer \(one\) and ours: .* 0.5, more than 0.1"):
        measure(case_of(1.0, 1.5), 1, ceiling=None, start=lambda *_: Noted("", []), quiet=True)


def result(name: str, median: float, difference: float = 0.0, **times: object) -> SideResult:
    values = {"fastest": median, "slowest": median, "samples": 3, "dropped": 0, "disturbed": False, **times}
    return SideResult(name, "", Times(median=median, **values), 4e9, 0.5, difference, 100.0)  # type: ignore[arg-type]


def test_json_of_a_case_is_the_contract():
    assert as_json([result("detres", 2.0), result("torchvision", 5.0, 0.25)]) == {
        "seconds": 2.0,
        "peak_rss_mib": 100.0,
        "ceiling_share": 0.5,
        "peers": {"torchvision": {"seconds": 5.0, "ratio": 2.5, "peak_rss_mib": 100.0, "difference": 0.25}},
    }


def test_a_case_without_peers():
    assert as_json([result("detres", 2.0)])["peers"] == {}


@pytest.mark.parametrize(
    ("times", "text"), [({}, "3"), ({"dropped": 2}, "3, 2 dropped"), ({"disturbed": True}, "3 (*)")]
)
def test_the_table_says_what_was_dropped(times: dict[str, Any], text: str, capsys):
    print_table("numbers", [("detres", result("detres", 1.0, **times))])
    printed = capsys.readouterr().out
    assert text in printed
    assert ("do not rely" in printed) == ("disturbed" in times)


@pytest.mark.parametrize(("seconds", "text"), [(12.34, "12.3 s"), (0.01234, "12.3 ms"), (4.5e-6, "4.5 us")])
def test_durations_have_a_unit_that_suits(seconds: float, text: str):
    assert duration(seconds) == text
