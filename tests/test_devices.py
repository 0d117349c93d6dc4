"""Where to compute, against machines pretended by the test."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from detres.devices import select_device, select_precision
from detres.errors import UserError


def test_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = [str(select_device(text)) for text in ("auto", "cpu", "cuda", "cuda:1")]
    assert chosen == ["cuda", "cpu", "cuda:0", "cuda:1"]
    with pytest.raises(UserError, match=r"cuda:2: this machine has 2 \(cuda:0 to cuda:1\)"):
        select_device("cuda:2")
    with pytest.raises(UserError, match="did you mean 'cuda'"):
        select_device("cudda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert str(select_device("auto")) == "cpu"
    with pytest.raises(UserError, match="PyTorch finds no GPU here"):
        select_device("cuda")


@pytest.mark.parametrize(
    ("low", "full", "expected"), [(1.0, 2.0, "bfloat16"), (1.0, 1.1, "float32"), (9.0, 1.0, "float32")]
)
def test_the_faster_precision(monkeypatch, low, full, expected):
    """On a clock that says how long each of the four products in bfloat16, then in float32 took."""
    instants = [instant for seconds in [low] * 4 + [full] * 4 for instant in (0.0, seconds)]
    monkeypatch.setattr("detres.devices.time.perf_counter", iter(instants).__next__)
    monkeypatch.setattr("detres.devices.PROBE_SIDE", 8)
    assert select_precision(torch.device("cpu")) == expected


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")
def test_freed_memory_is_kept():
    """In a process of its own: a block that fits into one freed before costs no page faults."""
    program = (
        "import resource, torch; from detres.devices import tune_malloc; assert tune_malloc();"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt;"
        "torch.zeros(2**24); before = faults(); torch.zeros(2**23); print(faults() - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100  # of 8,192 pages
