"""Damage to a weights file is found by its digest, whatever byte it hits."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models import write_tiny_classifier

from detres.errors import WeightsError
from detres.weights.checkpoint import METADATA_KEY, read_weights, save_weights
from detres.weights.foreign import read_backbone


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    return write_tiny_classifier(tmp_path_factory.mktemp("weights") / "c.safetensors")


def parts(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()[METADATA_KEY])


def rewrite(path: Path, tensors: dict[str, torch.Tensor], entries: object) -> Path:
    save_file(tensors, path, {METADATA_KEY: entries if isinstance(entries, str) else json.dumps(entries)})
    return path


@pytest.mark.parametrize("read", [read_weights, read_backbone])
@pytest.mark.parametrize("what", ["value", "name", "shape", "dtype", "metadata", "digest"])
def test_any_change_is_told(what, read, classifier, tmp_path):
    tensors, entries = parts(classifier)
    name = "layer1.0.conv1.weight"
    if what == "value":
        tensors[name][0, 0, 0, 0] += 1e-6
    elif what == "name":
        tensors["layer1.0.conv9.weight"] = tensors.pop(name)
    elif what == "shape":
        tensors[name] = tensors[name].reshape(-1)
    elif what == "dtype":
        tensors[name] = tensors[name].view(torch.int32).view(torch.bfloat16).nan_to_num(0, 0, 0)
    elif what == "metadata":
        entries["source"] = "a tesu"
    else:
        entries["digest"] = "0" * 64
    with pytest.raises(WeightsError, match=r"m.safetensors: damaged: its content is not what was saved"):
        read(rewrite(tmp_path / "m.safetensors", tensors, entries))


def test_metadata_in_another_spelling_are_the_same(classifier, tmp_path):
    tensors, entries = parts(classifier)
    path = rewrite(tmp_path / "m.safetensors", tensors, json.dumps(dict(sorted(entries.items())), indent=2))
    assert read_weights(path)[1] == read_weights(classifier)[1]


def test_a_file_without_a_digest_loads_and_says_so_once(classifier, tmp_path, caplog):
    caplog.set_level(logging.WARNING, "detres")
    tensors, entries = parts(classifier)
    del entries["digest"]
    path = rewrite(tmp_path / "m.safetensors", tensors, entries)
    for _ in range(2):
        assert read_weights(path)[0].keys() == tensors.keys()
        assert read_backbone(path).missing == ()
    assert [record.getMessage() for record in caplog.records if "no digest" in record.getMessage()] == [
        f"{path} has no digest: whether it is damaged cannot be told (files written from now on have one)"
    ]
    caplog.clear()
    read_weights(classifier)
    assert not caplog.records


def test_a_damaged_key_of_the_metadata_does_not_make_it_a_foreign_file(classifier, tmp_path):
    whole = classifier.read_bytes()
    path = tmp_path / "m.safetensors"
    path.write_bytes(whole.replace(b'"detres"', b'"detret"', 1))
    for read in (read_weights, read_backbone):
        with pytest.raises(WeightsError, match="damaged"):
            read(path)


@pytest.mark.parametrize("depth", [900, 5_000, 100_000])
def test_deeply_nested_metadata_are_one_line(depth, classifier, tmp_path):
    tensors, _ = parts(classifier)
    for text in ("[" * depth + "]" * depth, '{"architecture": ' + '{"a":' * depth + "1" + "}" * depth + "}"):
        path = rewrite(tmp_path / "m.safetensors", tensors, text)
        for read in (read_weights, read_backbone):
            with pytest.raises(WeightsError, match=r"m.safetensors: .*damaged") as caught:
                read(path)
            assert "\n" not in str(caught.value)


def test_the_digest_is_quick(classifier, tmp_path):
    """In CPU time, against the hash alone, because seconds depend on the machine and on what else it does."""
    _, metadata = read_weights(classifier)
    path = tmp_path / "m.safetensors"
    save_weights(path, {"a": torch.randn(25 << 20)}, metadata)  # 100 MB
    with safe_open(path, "pt") as file:
        tensors = {"a": torch.clone(file.get_tensor("a"))}
    entries = parts(path)[1]
    entries.pop("digest")
    from detres.weights import checkpoint

    seconds, of_blake2b = [], []
    content = tensors["a"].numpy().tobytes()
    for _ in range(3):
        begun = time.process_time()
        checkpoint._digest(tensors, entries)
        seconds.append(time.process_time() - begun)
        begun = time.process_time()
        hashlib.blake2b(content).digest()
        of_blake2b.append(time.process_time() - begun)
    print(f"digest of 100 MB: {min(seconds):.3f} s, BLAKE2b {min(of_blake2b):.3f} s")
    assert min(seconds) < 1.5 * min(of_blake2b)
