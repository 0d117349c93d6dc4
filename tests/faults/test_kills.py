"""Runs that are killed at random moments, again and again, and resumed. Truth: an unbroken run, bit by bit."""

from __future__ import annotations

import random
import shutil

from trainings import assert_same_results

KILLS, QUICK = 67, 2  # for each of the three trainings


def test_killed_at_random_moments(training, unbroken, home, server, is_slow):
    expected, seconds = unbroken
    run, moments = home / f"killed_{training.name}", random.Random(1)
    killed = finished = 0
    arguments = training.command(home, run, "--resume")
    while killed < (KILLS if is_slow else QUICK):
        status, _ = server.run(training, arguments, moments.uniform(0, 0.8 * seconds))
        assert status in (0, -9)
        killed += status == -9
        if status == 0:
            finished += 1
            assert_same_results(run, expected)
            shutil.rmtree(run)
    assert server.run(training, arguments)[0] == 0
    assert_same_results(run, expected)
    print(f"{training.name}: {killed} kills, {finished + 1} runs finished, all bit-equal")
