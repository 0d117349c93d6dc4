"""Weights files with single flipped bits and missing ends: each is refused, or read as it was saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import write_detector, write_tiny_classifier

from detres.errors import WeightsError
from detres.weights.checkpoint import read_weights
from detres.weights.foreign import read_backbone


def damage_is_found(path: Path, folder: Path, *, flips: int, cuts: int) -> tuple[int, int]:
    """Flip single bytes and cut the end off; each is refused with one line, or what is read is what was saved.

    Returns:
        How many were refused, and how many did no harm (blanks in the header).
    """
    whole, generator = path.read_bytes(), torch.Generator().manual_seed(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    tensors, metadata = read_weights(path)
    places = torch.randint(0, len(whole), (flips // 2,), generator=generator).tolist()
    places += torch.randint(0, header, (flips - len(places),), generator=generator).tolist()
    flipped = [
        whole[:place]
        + bytes([whole[place] ^ (1 << int(torch.randint(0, 8, (), generator=generator)))])
        + whole[place + 1 :]
        for place in places
    ]
    lengths = torch.randint(0, len(whole), (cuts,), generator=generator).tolist()
    messages: list[str] = []
    harmless = 0
    for number, content in enumerate([*flipped, *(whole[:length] for length in lengths)]):
        damaged = folder / f"{number}.safetensors"
        damaged.write_bytes(content)
        for read in (read_weights, read_backbone):
            try:
                found = read(damaged)
            except WeightsError as error:
                messages.append(str(error))
                continue
            again, of_file = (found if isinstance(found, tuple) else found.checkpoint) or ({}, None)
            assert of_file == metadata
            assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
            harmless += 1
        damaged.unlink()
    assert all(str(folder) in message and "\n" not in message for message in messages)
    return len(messages), harmless


@pytest.mark.parametrize("write", [write_detector, write_tiny_classifier])
@pytest.mark.parametrize(("flips", "cuts"), [(20, 5), pytest.param(200, 50, marks=pytest.mark.slow)])
def test_flipped_bits_and_truncations(write, flips, cuts, tmp_path):
    refused, harmless = damage_is_found(write(tmp_path / "w.safetensors"), tmp_path, flips=flips, cuts=cuts)
    print(
        f"{write.__name__}: {flips} flips, {cuts} cuts, read two ways: {refused} refused, {harmless} harmless"
    )
    assert refused + harmless == 2 * (flips + cuts)
    assert refused > 1.8 * (flips + cuts)
