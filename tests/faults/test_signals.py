"""SIGTERM and SIGINT at random moments from the first tenth of a second on, imports included."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from trainings import assert_same_results, environment
from whole_runs import ROOT

TIMES, QUICK = 9, 1  # for each signal and training
LONGEST = 10.0  # seconds to the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_at_random_moments(number, training, unbroken, home, server, is_slow):
    if not is_slow and training.name != "joint":
        pytest.skip("slow: runs with --slow")
    expected, _ = unbroken
    run, moments = home / f"stopped_{training.name}_{number}", random.Random(int(number))
    command = [
        sys.executable,
        str(ROOT / f"tools/{training.tool}.py"),
        *training.command(home, run, "--resume"),
    ]
    ends, finished = [], 0
    while len(ends) < (TIMES if is_slow else QUICK):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
        )
        time.sleep(moments.uniform(0.1, 5.0))
        begun = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        if process.returncode == 0:
            finished += 1  # before the signal came
            assert_same_results(run, expected)
            shutil.rmtree(run)
            continue
        ends.append(time.monotonic() - begun)
        assert process.returncode == 130, err
        assert err.endswith("stopped\n")
        assert "Traceback" not in err
    assert server.run(training, training.command(home, run, "--resume"))[0] == 0
    assert_same_results(run, expected)
    print(
        f"{training.name}: {len(ends)} signals, ended after {sum(ends) / len(ends):.1f} s, at most {max(ends):.1f} s"
    )
    assert max(ends) < LONGEST
