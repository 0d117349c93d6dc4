"""What tests of whole runs share: drawn data on disk in three formats, and a recipe of seconds."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from whole_runs import RECIPE, write_scenes


@pytest.fixture(scope="session")
def written_scenes(tmp_path_factory) -> Path:
    """Folders `coco`, `voc` and `yolo`, each with 6 training and 3 validation pictures; not to be changed."""
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root)
    return root


@pytest.fixture
def scenes(written_scenes, tmp_path) -> Path:
    """A copy of `written_scenes` that a test may spoil."""
    return Path(shutil.copytree(written_scenes, tmp_path / "scenes"))


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A configuration that trains a tiny detector for six steps, evaluating twice."""
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path
