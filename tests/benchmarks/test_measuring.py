"""Medians, dropping, turns and agreement; truths: hand-worked numbers and runs that note their order."""

from __future__ import annotations

import pytest
from benchmarks.alone import Request, Sample, SideHere

from benchmarks import alone
from benchmarks.cases import Case, Form, Prepared, Side, one_form, same_run_and_answer, within
from benchmarks.measuring import (
    DisagreementError,
    SideResult,
    Times,
    interleaved,
    measure,
    summary,
)
from benchmarks.tables import as_json, duration, samples_of


def test_median_and_range_of_the_samples():
    times = summary([Sample(3.0, 0.0), Sample(1.0, 0.01), Sample(2.0, None)])
    assert times == Times(median=2.0, fastest=1.0, slowest=3.0, samples=3, dropped=0, disturbed=False)


def test_disturbed_samples_are_dropped():
    times = summary([Sample(1.0, 0.05), Sample(9.0, 0.06), Sample(2.0, 0.0)], most=0.05)
    assert times == Times(median=1.5, fastest=1.0, slowest=2.0, samples=2, dropped=1, disturbed=False)


def test_where_every_sample_is_disturbed_all_are_kept_and_it_is_said():
    times = summary([Sample(1.0, 0.5), Sample(3.0, 0.6)])
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
    samples = interleaved({name: Noted(name, calls) for name in ("a", "b")}, 3)
    assert calls == ["a", "b"] + ["a", "b"] * 3  # a warm-up of each first
    assert [sample.seconds for sample in samples["a"]] == [2, 3, 4]


def test_short_runs_are_repeated_within_a_sample(monkeypatch):
    monkeypatch.setattr(alone, "SHORTEST_SAMPLE", 0.02)
    calls: list[int] = []
    case = Case("counting", one_form("detres", lambda: same_run_and_answer(lambda: calls.append(1))))
    side = SideHere(Request(lambda _: [case], None, "counting", "detres", "", "cpu", 1))
    assert side.sample().seconds < 0.01
    assert len(calls) > 10
    assert (side.peak_mib() or 100) > 50


def number(value: float) -> Prepared:
    return same_run_and_answer(lambda: value)


def case_of(ours: float, theirs: float, tolerance: float = 0.1, units: int = 1) -> Case:
    return Case(
        "numbers",
        one_form("detres", lambda: number(ours)),
        (Side("peer", (Form("one", lambda: number(theirs)), Form("two", lambda: number(theirs)))),),
        compare=lambda a, b: within(abs(a - b), tolerance, "numbers"),
        units=units,
    )


def test_a_case_is_measured():
    """The peer's form two is the faster one; form one is ended at once, the others after the last sample."""
    calls: list[str] = []
    seconds = {("detres", ""): 2.0, ("peer", "one"): 9.0, ("peer", "two"): 4.0}

    def start(side: Side, form: Form) -> Noted:
        return Noted(f"{side.name} {form.name}".strip(), calls, seconds[side.name, form.name])

    ours, peer = measure(case_of(1.0, 1.0625, units=2), 2, ceiling=None, start=start, quiet=True)
    assert calls[:3] == ["peer one", "peer two", "peer one ended"]
    assert calls[3:5] == ["detres", "peer two"]  # warm-up
    assert calls.count("peer one") == 1
    assert calls[-2:] == ["detres ended", "peer two ended"]
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

    def start(side: Side, form: Form) -> Noted:
        if form.name == "two":
            raise EOFError("no memory left")
        return Noted(f"{side.name} {form.name}".strip(), calls)

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


def test_the_table_says_what_was_dropped():
    assert samples_of(result("detres", 1.0)) == "3"
    assert samples_of(result("detres", 1.0, dropped=2)) == "3, 2 dropped"
    assert samples_of(result("detres", 1.0, disturbed=True)) == "3 (*)"


@pytest.mark.parametrize(("seconds", "text"), [(12.34, "12.3 s"), (0.01234, "12.3 ms"), (4.5e-6, "4.5 us")])
def test_durations_have_a_unit_that_suits(seconds: float, text: str):
    assert duration(seconds) == text
