"""The weights file: what is written is what is read; other files, damage and other versions are refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from detres.data.preprocessing import MSRA
from detres.errors import UserError, WeightsError
from detres.weights.checkpoint import METADATA_KEY, Metadata, read_weights, save_weights

METADATA = Metadata(
    task="detection",
    architecture={"network": {"name": "resnet18", "width": 0.25}, "freeze_at": 2, "anchors": [64.0, 128.0]},
    class_names=("œil", "chat"),
    category_ids=(3, 90),
    preprocessing=MSRA,
    sizes={"short_side": 600, "long_side": 1000},
    test={"score_thresh": 0.05},
    source="a test",
)


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, 2, 2, generator=generator)
    return {
        "a.weight": weight,
        "b.weight": weight.transpose(0, 1),  # shares memory and is not contiguous
        "c.count": torch.tensor(7),
        "d.half": weight.to(torch.bfloat16),
    }


def test_round_trip_keeps_tensors_and_metadata(tmp_path, tensors):
    save_weights(tmp_path / "new" / "model.safetensors", tensors, METADATA)
    read, metadata = read_weights(tmp_path / "new" / "model.safetensors")
    assert metadata == METADATA
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.safetensors"]


def test_truncated_file_is_named(tmp_path, tensors):
    path = tmp_path / "model.safetensors"
    save_weights(path, tensors, METADATA)
    whole = path.read_bytes()
    for length in (0, 4, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"model.safetensors: truncated"):
            read_weights(path)


def test_missing_and_foreign_files_are_refused(tmp_path, tensors):
    with pytest.raises(WeightsError, match="no such weights file"):
        read_weights(tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match="no such weights file"):
        read_weights(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="without detres metadata"):
        read_weights(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 3}, "newer detres"),
        ({"format_version": 1}, "before the first release .*train or convert it again$"),
        ({"task": "poetry"}, "metadata key task"),
        ({"preprocessing": {"mean": [1.0]}}, "metadata key preprocessing"),
    ],
)
def test_metadata_of_another_version_or_edited_are_refused(tmp_path, change, message):
    entries = json.loads(METADATA.model_dump_json()) | change
    save_file({"a": torch.zeros(1)}, tmp_path / "m.safetensors", {METADATA_KEY: json.dumps(entries)})
    with pytest.raises(WeightsError, match=message):
        read_weights(tmp_path / "m.safetensors")


def test_metadata_that_are_not_json_are_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "m.safetensors", {METADATA_KEY: "{"})
    with pytest.raises(WeightsError, match="not JSON"):
        read_weights(tmp_path / "m.safetensors")


def test_failed_write_leaves_the_earlier_file(tmp_path, tensors, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_weights(path, tensors, METADATA)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(UserError, match="no space left"):
        save_weights(path, {"a.weight": torch.ones(2)}, METADATA)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
