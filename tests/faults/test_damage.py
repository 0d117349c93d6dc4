"""Checkpoints with a byte flipped or the end cut off. Truth: what was saved, or the checkpoint before it."""

from __future__ import annotations

import random

import pytest
import torch
from whole_runs import assert_equal

from detres.training.checkpoints import load_checkpoint, save_checkpoint


def state(value: float) -> dict[str, object]:
    return {"network": {"weight": torch.full((500,), value)}, "losses": {"class": value}, "best": None}


@pytest.mark.parametrize(("damage", "count"), [("flip", 200), ("cut", 50)])
def test_damage_is_found_or_harmless(tmp_path, damage, count):
    for step in (1, 2):
        path = save_checkpoint(tmp_path, step, state(float(step)), best_step=None, keep=2)
    content, places, found = path.read_bytes(), random.Random(0), 0
    for _ in range(count):
        place = places.randrange(len(content))
        flipped = content[:place] + bytes([content[place] ^ 1 << places.randrange(8)]) + content[place + 1 :]
        path.write_bytes(content[:place] if damage == "cut" else flipped)
        loaded = load_checkpoint(tmp_path)
        assert loaded is not None
        found += loaded["step"] == 1
        assert_equal({key: loaded[key] for key in state(0.0)}, state(float(loaded["step"])))
    print(f"{damage}: {found} of {count} found, the others harmless")
    assert found >= count / 2
