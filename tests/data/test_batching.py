"""Samples against resizing by hand; the stream of keys against the unbroken stream; loaders against the plain loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detres.data.batching import KeyBatches, make_loader
from detres.data.classification_samples import ClassificationDataset, collate_classification
from detres.data.config import AugmentationConfig, CropConfig
from detres.data.detection_samples import DetectionDataset, DetectionSample, collate_detection, load_image
from detres.data.records import Annotations, Strings
from detres.data.shapes import shapes_annotations, shapes_labels
from detres.errors import UserError

CHANGES = AugmentationConfig(flip=0.5, brightness_contrast=0.2, scale_jitter=(0.8, 1.2))


def annotations_of(
    paths: list[Path], sizes: list[tuple[int, int]], boxes: list[list[list[float]]]
) -> Annotations:
    """Annotations with one class; every second object is difficult where a picture has more than one."""
    flat = np.array([box for image in boxes for box in image], dtype=np.float32).reshape(-1, 4)
    return Annotations(
        paths=Strings([str(path) for path in paths]),
        image_ids=Strings([path.stem for path in paths]),
        sizes=np.array(sizes, dtype=np.int64),
        upright=np.ones(len(paths), bool),
        offsets=np.cumsum([0, *(len(image) for image in boxes)]).astype(np.int64),
        boxes=flat,
        labels=np.zeros(len(flat), np.int64),
        crowd=np.zeros(len(flat), bool),
        difficult=np.zeros(len(flat), bool),
        areas=np.zeros(len(flat)),
        class_names=("thing",),
    )


def assert_equal(one: DetectionSample, other: DetectionSample) -> None:
    assert torch.equal(one.image, other.image)
    assert torch.equal(one.boxes, other.boxes)
    assert torch.equal(one.labels, other.labels)
    assert (one.scale, one.size, one.image_id, one.name) == (
        other.scale,
        other.size,
        other.image_id,
        other.name,
    )


def test_a_sample_is_the_resized_image_with_its_boxes(tmp_path):
    path = tmp_path / "p.png"
    Image.fromarray(np.full((30, 50, 3), 7, np.uint8)).save(path)
    annotations = annotations_of([path], [(30, 50)], [[[5, 3, 25, 30], [0, 0, 1, 1], [0, 0, 2, 2]]])
    annotations = replace(
        annotations, difficult=np.array([False, True, False]), crowd=np.array([False, False, True])
    )
    sample = DetectionDataset(annotations, 60, 95)[0]
    assert sample.image.shape == (3, 57, 95)  # 50 -> 95 at most, so 30 -> 57
    assert sample.image.dtype == torch.uint8
    assert sample.scale == pytest.approx((1.9, 1.9))
    assert sample.size == (30, 50)
    assert sample.boxes.numpy() == pytest.approx(np.array([[9.5, 5.7, 47.5, 57.0]]), abs=1e-4)
    assert sample.labels.tolist() == [0]
    assert (sample.image_id, sample.index, sample.name) == ("p", 0, str(path))


def test_a_image_without_objects_is_a_sample():
    annotations = shapes_annotations("train", 40)
    empty = int(np.flatnonzero(np.diff(annotations.offsets) == 0)[0])
    sample = DetectionDataset(annotations, 64, 100, AugmentationConfig(flip=1.0))[empty]
    assert sample.boxes.shape == (0, 4)
    assert sample.boxes.dtype == torch.float32
    assert sample.labels.shape == (0,)
    assert sample.labels.dtype == torch.int64


def test_evaluation_changes_nothing_and_training_differs_by_epoch():
    annotations = shapes_annotations("train", 3)
    plain = DetectionDataset(annotations, 64, 100)
    assert_equal(plain[1], plain[(5, 1)])
    changed = DetectionDataset(annotations, 64, 100, CHANGES, seed=1)
    assert_equal(changed[(5, 1)], changed[(5, 1)])
    shapes = {changed[(epoch, 1)].image.shape for epoch in range(10)}
    assert len(shapes) > 1


def test_a_size_that_differs_is_refused_with_both_sizes(tmp_path):
    path = tmp_path / "p.png"
    Image.fromarray(np.zeros((30, 50, 3), np.uint8)).save(path)
    for wanted in ((31, 50), (50, 30)):  # the second: swapped, without an orientation that would explain it
        with pytest.raises(UserError, match=rf"p\.png is 50 x 30 .* {wanted[1]} x {wanted[0]}"):
            load_image(annotations_of([path], [wanted], [[]]), 0)


def test_boxes_drawn_on_the_unrotated_image_get_the_unrotated_image(tmp_path):
    path = tmp_path / "turned.jpg"
    pixels = np.zeros((30, 50, 3), np.uint8)
    pixels[:, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, quality=95, exif=exif.tobytes())
    upright = load_image(annotations_of([path], [(50, 30)], [[]]), 0)
    assert upright.shape == (50, 30, 3)
    assert upright[:8].min() > 240  # the left edge came to the top
    stored = load_image(annotations_of([path], [(30, 50)], [[]]), 0)
    assert stored.shape == (30, 50, 3)
    assert stored[:, :8].min() > 240
    flagged = replace(annotations_of([path], [(30, 50)], [[]]), upright=np.array([False]))
    assert np.array_equal(load_image(flagged, 0), stored)


def test_reduced_decoding_changes_pixels_by_a_level_and_nothing_else(tmp_path):
    """A JPEG of twice the wanted size on its side (EXIF 6): same boxes, scale and size; a half equals the resize."""
    rng = np.random.default_rng(0)
    blobs = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((320, 240))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    blobs.save(path, quality=95, exif=exif.tobytes())
    for size in ((320, 240), (240, 320)):  # the boxes were drawn on the upright picture, or on the stored one
        annotations = annotations_of([path], [size], [[[20, 40, 100, 200]]])
        full, reduced = (DetectionDataset(annotations, 120, 160, None, 0, how)[0] for how in (False, True))
        assert_equal(reduced, replace(full, image=reduced.image))
        assert reduced.image.shape == (3, size[0] // 2, size[1] // 2)
        difference = (reduced.image.int() - full.image.int()).abs()
        assert 0 < difference.float().mean() < 1


def test_reduced_decoding_refuses_a_size_that_differs(tmp_path):
    """Half the annotated size is another picture, not a reduced one."""
    path = tmp_path / "p"
    for kind in ("PNG", "JPEG"):
        Image.fromarray(np.zeros((40, 80, 3), np.uint8)).save(path, kind)
        with pytest.raises(UserError, match=r"p is 80 x 40 .* 160 x 80"):
            load_image(annotations_of([path], [(80, 160)], [[]]), 0, (10, 20))


def test_an_object_without_area_inside_the_image_is_an_error_not_a_loss(tmp_path):
    path = tmp_path / "p.png"
    Image.fromarray(np.zeros((30, 50, 3), np.uint8)).save(path)
    annotations = annotations_of([path], [(30, 50)], [[[1, 1, 9, 9], [60, 1, 70, 9]]])
    with pytest.raises(UserError, match=r"p\.png: objects \[1\]"):
        DetectionDataset(annotations, 60, 100, AugmentationConfig(flip=1.0))[0]


def test_every_epoch_of_the_stream_holds_every_index_once():
    batches = list(KeyBatches(10, 4, seed=3, stop=10))
    keys = [key for batch in batches for key in batch]
    assert all(len(batch) == 4 for batch in batches)
    for epoch in range(4):
        part = keys[epoch * 10 : (epoch + 1) * 10]
        assert sorted(part) == [(epoch, index) for index in range(10)]
    assert keys[:10] != sorted(keys[:10])
    assert [index for _, index in keys[:10]] != [index for _, index in keys[10:20]]


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (3, 8), (1, 2), (7, 1)])
def test_a_stream_resumed_at_any_step_is_the_unbroken_stream(count, batch):
    unbroken = list(KeyBatches(count, batch, seed=5, stop=12))
    for start in range(13):
        resumed = KeyBatches(count, batch, seed=5, start=start, stop=12)
        assert list(resumed) == unbroken[start:]
        assert len(resumed) == 12 - start
    assert list(KeyBatches(count, batch, seed=6, stop=12)) != unbroken or count == 1


def test_a_stream_of_nothing_is_refused():
    with pytest.raises(UserError, match="no picture"):
        KeyBatches(0, 2, seed=0, stop=1)


@pytest.mark.parametrize(("workers", "start_method"), [(0, None), (1, "spawn"), (2, None)])
def test_samples_do_not_depend_on_workers(workers, start_method):
    dataset = DetectionDataset(shapes_annotations("train", 5, seed=2), 48, 80, CHANGES, seed=4)
    keys = KeyBatches(len(dataset), 3, seed=4, start=2, stop=5)
    expected = [[dataset[key] for key in batch] for batch in keys]
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loaded = list(make_loader(dataset, keys, collate_detection, workers=workers, start_method=start_method))
    assert torch.equal(torch.get_rng_state(), before)
    assert [len(batch) for batch in loaded] == [3, 3, 3]
    for batch, wanted in zip(loaded, expected, strict=True):
        for sample, other in zip(batch, wanted, strict=True):
            assert_equal(sample, other)


def test_classification_batches_stack_crops():
    images = shapes_labels("train", 12, side=40)
    crop = CropConfig(size=32, train_sides=(32, 40), test_side=32)
    training = ClassificationDataset(images, crop, train=True, seed=1)
    keys = KeyBatches(len(training), 5, seed=1, stop=2)
    for loaded, batch in zip(make_loader(training, keys, collate_classification), keys, strict=True):
        assert loaded.images.shape == (5, 3, 32, 32)
        assert loaded.images.dtype == torch.uint8
        assert loaded.labels.tolist() == [index % 5 for _, index in batch]
        assert loaded.labels.dtype == torch.int64
        for image, name, key in zip(loaded.images, loaded.names, batch, strict=True):
            assert torch.equal(image, training[key].image)
            assert name == images.paths[key[1]]
    assert not torch.equal(training[(0, 3)].image, training[(1, 3)].image)
    testing = ClassificationDataset(images, crop, train=False)
    assert torch.equal(testing[(0, 3)].image, testing[(1, 3)].image)


def test_real_images_keep_their_annotated_sizes(real_data: Path):
    """BCCD: every picture is 640 x 480."""
    paths = sorted((real_data / "bccd" / "JPEGImages").glob("*.jpg"))[:5]
    annotations = annotations_of(paths, [(480, 640)] * 5, [[[0, 0, 640, 480]]] * 5)
    for index in range(5):
        sample = DetectionDataset(annotations, 600, 1000, AugmentationConfig(flip=1.0))[index]
        assert sample.image.shape == (3, 600, 800)
        assert sample.boxes.numpy() == pytest.approx(np.array([[0, 0, 800, 600]]), abs=1e-3)
