"""What tests of injected faults share: the tools' trainings as command lines, and how often a fault is injected."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "system"))
sys.path.insert(0, str(Path(__file__).parent))

from trainings import CLASSIFIER, DETECTOR, TRAININGS, Server, Training
from whole_runs import write_scenes


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """A folder with drawn data, recipes and room for runs; its data are not to be changed."""
    root = tmp_path_factory.mktemp("faults")
    write_scenes(root / "scenes")
    (root / "detector.yaml").write_text(DETECTOR)
    (root / "classifier.yaml").write_text(CLASSIFIER)
    return root


@pytest.fixture(scope="session", params=TRAININGS, ids=lambda training: training.name)
def training(request) -> Training:
    """Each of the three."""
    return request.param


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Starts runs without importing anew."""
    with Server() as opened:
        yield opened


@pytest.fixture(scope="session")
def unbroken(home, training, server) -> tuple[Path, float]:
    """The folder of an unbroken run of `training`, and its seconds without imports."""
    out = home / f"unbroken_{training.name}"
    status, seconds = server.run(training, training.command(home, out))
    assert status == 0
    return out, seconds


@pytest.fixture
def is_slow(request) -> bool:
    """Whether the full numbers are asked for."""
    return bool(request.config.getoption("--slow"))
