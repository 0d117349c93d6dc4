"""Files of an ensemble: one task, the same names in any order; each fault is named with its file."""

from __future__ import annotations

import pytest
from tiny_models import write_tiny_classifier

from detres.errors import UserError, WeightsError
from detres.tasks.ensemble import class_order, read_ensemble
from detres.weights.checkpoint import read_weights, save_weights


@pytest.fixture
def first(tmp_path):
    return write_tiny_classifier(tmp_path / "first.safetensors", ("a", "b", "c"))


def test_files_are_read_whole_in_their_order(first, tmp_path):
    second = write_tiny_classifier(tmp_path / "second.safetensors", ("c", "a", "b"))
    files = read_ensemble([first, second])
    assert [file.path for file in files] == [str(first), str(second)]
    assert files[1].metadata == read_weights(second)[1]
    assert files[1].tensors.keys() == read_weights(second)[0].keys()
    assert len(read_ensemble([first], "classification")) == 1


def test_faults(first, tmp_path):
    tensors, metadata = read_weights(first)
    save_weights(tmp_path / "task.safetensors", tensors, metadata.model_copy(update={"task": "localization"}))
    other = write_tiny_classifier(tmp_path / "names.safetensors", ("a", "b", "d"))
    with pytest.raises(UserError, match="0 weights files"):
        read_ensemble([])
    with pytest.raises(
        WeightsError, match=r"first\.safetensors: weights for classification, not for detection"
    ):
        read_ensemble([first], "detection")
    with pytest.raises(
        WeightsError, match=r"task\.safetensors: weights for localization, not for classification"
    ):
        read_ensemble([first, tmp_path / "task.safetensors"])
    with pytest.raises(WeightsError, match=r"names\.safetensors has 3 .*missing there: c; unknown: d"):
        read_ensemble([first, other])


def test_order_is_the_place_of_the_first_networks_classes():
    assert class_order(("c", "a", "b"), ("a", "b", "c"), "second", "first") == (1, 2, 0)
