"""The drawn data set against its own promises (sizes, boxes, occlusion, shares), and against fresh renderings."""

from __future__ import annotations

import numpy as np
import pytest

from detres.data.decoding import read_header, read_image
from detres.data.shape_forms import (
    SHAPE_CLASSES,
    bounding_box,
    random_form,
    random_texture,
    rasterize,
    texture_pixels,
)
from detres.data.shapes import (
    DISTRACTOR,
    draw,
    drawn_size,
    is_shapes,
    lay_out,
    lay_out_single,
    read_shapes,
    shapes_annotations,
    shapes_labels,
)
from detres.errors import UserError

SCENES = [lay_out("train", 0, index) for index in range(300)]


def test_scenes_hold_one_to_eight_objects_and_one_in_ten_is_empty():
    counts = np.array([len(scene.objects()[1]) for scene in SCENES])
    assert counts.max() == 8
    assert 0.05 < (counts == 0).mean() < 0.16
    assert set(counts) == set(range(9))
    assert all(scene.forms for scene in SCENES)  # an empty picture has distractors


def test_objects_measure_16_to_160_pixels_and_lie_inside():
    for scene in SCENES:
        boxes, _ = scene.objects()
        longer = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
        assert (longer > 15.99).all()
        assert (longer < 160.01).all()
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= [scene.width, scene.height]).all()


def test_at_least_half_of_each_object_is_seen():
    """Rendered again from the top down: a pixel belongs to the highest form that covers its center."""
    for scene in SCENES[:100]:
        taken = np.zeros((scene.height, scene.width), bool)
        for form in reversed(scene.forms):
            rows, columns, mask = rasterize(form.contours)
            whole = np.zeros_like(taken)
            whole[rows, columns] = mask > 0
            seen = (whole & ~taken).sum() / whole.sum()
            assert seen == pytest.approx(form.visible)
            assert seen >= 0.5 or form.label == DISTRACTOR
            taken |= whole
    shares = np.array([form.visible for scene in SCENES for form in scene.forms if form.label != DISTRACTOR])
    assert (shares < 0.85).mean() > 0.05  # occlusion does happen,
    assert shares.min() < 0.6  # now and then by nearly half


def test_classes_come_equally_often():
    labels = np.concatenate([scene.objects()[1] for scene in SCENES])
    shares = np.bincount(labels, minlength=len(SHAPE_CLASSES)) / len(labels)
    assert np.abs(shares - 1 / len(SHAPE_CLASSES)).max() < 0.04


@pytest.mark.parametrize("kind", SHAPE_CLASSES)
def test_a_mask_covers_the_area_of_its_outline_and_fills_its_box(kind):
    """Area by the shoelace formula (the ring's hole taken off); the mask's edge within a quarter pixel of the box."""
    for seed in range(5):
        contours = [part + 3.3 for part in random_form(kind, 50.0, np.random.default_rng(seed))]
        area = 0.0
        for number, part in enumerate(contours):
            x, y = part.T
            shoelace = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
            area += shoelace if number == 0 else -shoelace
        rows, columns, mask = rasterize(contours, 4)
        covered = mask.astype(float) / 255
        assert covered.sum() == pytest.approx(area, rel=0.04)
        x1, y1, x2, y2 = bounding_box(contours)
        assert max(x2 - x1, y2 - y1) == pytest.approx(50.0)
        assert (rows.start, columns.start) == (int(y1), int(x1))
        assert (rows.stop, columns.stop) == (int(np.ceil(y2)), int(np.ceil(x2)))
        assert all(edge.any() for edge in (mask[:2], mask[-2:], mask[:, :2], mask[:, -2:]))


def test_a_texture_is_the_product_of_its_two_waves():
    """Against one sine for every pixel."""
    texture = random_texture(np.random.default_rng(3), [])
    y, x = np.mgrid[5:25, 7:40]
    pattern = np.prod([np.sin(a * x + b * y + phase) for a, b, phase in texture.waves], axis=0)
    expected = texture.color + pattern[..., None] * texture.swing
    assert np.abs(texture_pixels(texture, slice(5, 25), slice(7, 40)) - expected).max() < 0.01


def test_a_image_is_a_function_of_split_seed_and_index():
    path = "shapes://test/7/3"
    assert np.array_equal(draw(path), read_image(path))
    assert np.array_equal(draw(path), draw(path))
    others = ["shapes://val/7/3", "shapes://test/8/3", "shapes://test/7/4"]
    assert all(not np.array_equal(draw(path), draw(other)) for other in others)


def test_annotations_agree_with_scenes_and_images():
    annotations = shapes_annotations("test", 6, seed=7)
    assert annotations.class_names == SHAPE_CLASSES
    assert len(annotations) == 6
    for index in range(6):
        image = read_image(annotations.paths[index])
        assert image.shape == (*annotations.sizes[index], 3)
        assert drawn_size(annotations.paths[index]) == image.shape[:2]
        assert read_header(annotations.paths[index]) == (*image.shape[:2], 1)
        boxes, labels = lay_out("test", 7, index).objects()
        assert np.array_equal(annotations.boxes[annotations.objects(index)], boxes)
        assert np.array_equal(annotations.labels[annotations.objects(index)], labels)
    shorter = shapes_annotations("test", 3, seed=7)
    assert np.array_equal(shorter.boxes, annotations.boxes[: len(shorter.boxes)])
    assert len(shapes_annotations("val", 0)) == 0


def test_an_object_stands_out_where_its_box_says():
    """On the topmost form the color of the picture is its own: the median inside differs from that around the box."""
    found = 0
    for index in range(40):
        scene = lay_out("val", 0, index)
        if len(scene.forms) != 1 or scene.forms[0].label in (DISTRACTOR, SHAPE_CLASSES.index("ring")):
            continue
        image = draw(f"shapes://val/0/{index}").astype(float)
        x1, y1, x2, y2 = np.rint(scene.objects()[0][0]).astype(int)
        middle = image[(y1 + y2) // 2 - 2 : (y1 + y2) // 2 + 3, (x1 + x2) // 2 - 2 : (x1 + x2) // 2 + 3]
        below = image[min(y2 + 3, len(image) - 1) :, x1:x2]
        if below.size:
            found += 1
            assert np.abs(np.median(middle, axis=(0, 1)) - np.median(below, axis=(0, 1))).max() > 20
    assert found >= 1


def test_classification_images_show_one_form_of_their_class():
    images = shapes_labels("train", 13, seed=1, side=48)
    assert images.labels.tolist() == [index % 5 for index in range(13)]
    for index in range(13):
        assert read_image(images.paths[index]).shape == (48, 48, 3)
        labels = [
            form.label for form in lay_out_single("train", 1, index, 48).forms if form.label != DISTRACTOR
        ]
        assert labels == [index % 5]


@pytest.mark.parametrize("text", ["shapes", "shapes:25", "shapes:25:4"])
def test_a_name_says_how_many_and_which(text):
    assert is_shapes(text)
    if text != "shapes":
        annotations = read_shapes(text, "val")
        assert len(annotations) == 25
        assert annotations.paths[24] == f"shapes://val/{4 if text.endswith(':4') else 0}/24"


def test_wrong_names_are_refused():
    assert not is_shapes("shapes/train")
    with pytest.raises(UserError, match="shapes:COUNT"):
        read_shapes("shapes:many", "train")
    with pytest.raises(UserError, match="did you mean 'train'"):
        shapes_annotations("trian", 3)
    with pytest.raises(UserError, match="shapes://SPLIT/SEED/INDEX"):
        read_image("shapes://somewhere/1")
