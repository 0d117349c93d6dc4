"""What all tests share: real data, fixed seeds and threads, `--slow`."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["OMP_NUM_THREADS"] = "1"  # the same sums in every test and in the programs that tests start
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "training")]  # tiny_models, tiny_task
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: runs with --slow"))


@pytest.fixture(autouse=True)
def same_signal_handlers() -> Iterator[None]:
    """A tool that runs in the tests' process leaves its handlers, which would end that process in a later test."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets and weights; skips where DETRES_DATA names none."""
    folder = os.environ.get("DETRES_DATA")
    if not folder:
        pytest.skip("DETRES_DATA is not set: no real data")
    if not Path(folder).is_dir():
        pytest.skip(f"DETRES_DATA={folder} is no folder: no real data")
    return Path(folder)


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    """The same seeds in every test, whatever ran before it, and no log handlers left behind."""
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(0)
    log = logging.getLogger("detres")
    before = list(log.handlers)
    yield
    log.handlers[:] = before
