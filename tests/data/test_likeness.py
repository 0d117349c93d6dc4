"""Pictures that are nearly the same: truth is copies made here, a slow comparison, and groups known by eye."""

from __future__ import annotations

from itertools import combinations

import cv2
import make_data
import numpy as np
import pytest

from detres.cli.check_data import main
from detres.data.checks import check_data_set
from detres.data.decoding import read_image
from detres.data.drawing import write_image
from detres.data.likeness import (
    FLAT,
    LARGEST_DISTANCE,
    LEAST_CORRELATION,
    compute_signature,
    find_near_copies,
)
from detres.data.shapes import shapes_annotations


def signed(image: np.ndarray) -> np.ndarray:
    found = compute_signature(image)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def scenes() -> list[np.ndarray]:
    drawn = shapes_annotations("train", 12)
    return [read_image(drawn.paths[index]) for index in range(12)]


def decoded(jpeg: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB."""
    image = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
    assert image is not None
    return np.ascontiguousarray(image[:, :, ::-1])


def test_saved_again_resized_brightened(scenes):
    """Each copy is found with its original and with nothing else."""
    image = scenes[3]
    _, jpeg = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 40])
    copies = [
        image,
        decoded(jpeg),
        cv2.resize(image, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA),
        (image * 0.8 + 20).astype(np.uint8),
    ]
    others = [scene for place, scene in enumerate(scenes) if place != 3]
    found = find_near_copies(
        [signed(np.ascontiguousarray(one)) for one in (*others[:5], *copies, *others[5:])]
    )
    assert found == [[5, 6, 7, 8]]


def test_hash_by_hand():
    """A picture that gets brighter to the right has all 64 bits, its mirror image none."""
    ramp = np.repeat(np.linspace(0, 255, 90, dtype=np.uint8)[None, :, None], 80, axis=0).repeat(3, axis=2)
    assert signed(ramp)[:8].tolist() == [255] * 8
    assert signed(np.ascontiguousarray(ramp[:, ::-1]))[:8].tolist() == [0] * 8
    assert find_near_copies([signed(ramp), signed(np.ascontiguousarray(ramp[:, ::-1]))]) == []


def test_against_a_slow_comparison():
    """Random signatures, some a few bits and gray levels from another; more of them than are compared at once."""
    rng = np.random.default_rng(0)
    signatures = list(rng.integers(0, 256, (600, 264), dtype=np.uint8))
    for copy, original, bits, noise in ((599, 0, 8, 5), (17, 5, 9, 5), (520, 519, 3, 200), (300, 599, 8, 5)):
        changed = np.unpackbits(signatures[original])
        changed[rng.choice(64, bits, replace=False)] ^= 1
        signatures[copy] = np.packbits(changed)
        gray = signatures[copy][8:] + rng.normal(0, noise, 256)
        signatures[copy][8:] = np.clip(gray, 0, 255).astype(np.uint8)
    pairs = set()
    for first, second in combinations(range(600), 2):
        one, other = signatures[first], signatures[second]
        distance = np.unpackbits(one[:8] ^ other[:8]).sum()
        if distance <= LARGEST_DISTANCE and np.corrcoef(one[8:], other[8:])[0, 1] >= LEAST_CORRELATION:
            pairs.add((first, second))
    assert pairs == {(0, 599), (300, 599)}
    assert find_near_copies(signatures) == [[0, 300, 599]]


def test_none_one_and_all_alike(scenes):
    one = signed(scenes[0])
    assert find_near_copies([]) == []
    assert find_near_copies([one]) == []
    assert find_near_copies([one] * 700) == [list(range(700))]


def test_a_image_that_shows_nothing_is_like_no_other():
    gray = np.full((50, 60, 3), 128, np.uint8)
    assert compute_signature(gray) is None
    gray[:, 30:] += int(2 * FLAT) + 2
    assert compute_signature(gray) is not None


def test_drawn_scenes_are_not_alike():
    assert check_data_set("shapes:60", "test", quiet=True).near_identical == []  # type: ignore[arg-type]


def test_raccoon(real_data):
    """The groups of data/README, found by eye."""
    report = check_data_set(real_data / "raccoon", quiet=True)
    near, same = (
        {frozenset(entry.rsplit("-", 1)[1] for entry in group) for group in groups}
        for groups in (report.near_identical, report.identical)
    )
    assert {frozenset(("50", "52", "74")), frozenset(("21", "45")), frozenset(("51", "85"))} <= near
    expected = [("11", "116"), ("120", "83"), ("21", "45"), ("50", "52", "74"), ("65", "98"), ("51", "85")]
    assert near | same - {frozenset(("52", "74"))} == set(map(frozenset, expected))


def test_tool_says_why_copies_across_splits_matter(tmp_path, capsys):
    make_data.coco(tmp_path, "train")
    make_data.coco(tmp_path, "val")
    for split, name, seed, quality in (
        ("train", "a", 1, 95),
        ("train", "b", 2, 95),
        ("val", "a", 1, 60),
        ("val", "b", 3, 95),
    ):
        blobs = np.random.default_rng(seed).integers(0, 255, (8, 10, 3), dtype=np.uint8)
        image = cv2.resize(blobs, (100, 80), interpolation=cv2.INTER_CUBIC)
        _, jpeg = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        write_image(next((tmp_path / split).glob(f"{name}.*")), decoded(jpeg))
    main(["--data", str(tmp_path), "--quiet"])
    printed = capsys.readouterr().out
    assert "pictures that are nearly the same: 1 groups, 1 across splits" in printed
    assert "(across splits)" in printed
    assert "Keep the images of a group in one split" in printed
