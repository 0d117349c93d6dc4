"""`detres.load`, detectors and classifiers as Python users have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import LONG_SIDE, SHORT_SIDE, write_detector, write_tiny_classifier

import detres
from detres.api import Classifier, DetectionResult, Detector, as_image
from detres.data.decoding import read_image
from detres.data.drawing import write_image
from detres.data.preprocessing import to_tensor
from detres.data.shape_forms import SHAPE_CLASSES
from detres.data.shapes import shapes_annotations
from detres.data.transforms import resize_image
from detres.detection.build import detector_from_tensors
from detres.detection.config import DetectionTestConfig
from detres.detection.detect import detect_image
from detres.detection.features import DetectorMember, ResizedImage
from detres.errors import DataError, UserError, WeightsError
from detres.networks.config import NetworkConfig
from detres.weights.checkpoint import Metadata, read_safetensors, read_weights, save_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return write_detector(tmp_path_factory.mktemp("weights") / "d.safetensors")


@pytest.fixture(scope="module")
def detector(weights) -> Detector:
    found = detres.load(weights, device="cpu")
    assert isinstance(found, Detector)
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    """A lying, a standing, and a small square picture."""
    folder = tmp_path_factory.mktemp("images")
    scenes = shapes_annotations("test", 12)
    lying = next(i for i in range(12) if scenes.sizes[i, 0] < scenes.sizes[i, 1])
    standing = next(i for i in range(12) if scenes.sizes[i, 0] > scenes.sizes[i, 1])
    images = [read_image(scenes.paths[index]) for index in (lying, standing)]
    images.append(images[0][40:140, 30:130])
    for number, image in enumerate(images):
        write_image(folder / f"{number}.png", image)
    return [folder / f"{number}.png" for number in range(3)]


def assert_same(found: DetectionResult, expected: DetectionResult) -> None:
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.labels, expected.labels)


def test_what_is_found(detector, images):
    found = detector(images[0])
    height, width = found.image.shape[:2]
    count = len(found)
    assert count > 5
    assert found.boxes.shape == (count, 4)
    assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (
        torch.float32,
        torch.float32,
        torch.int64,
    )
    assert torch.equal(found.scores, found.scores.sort(descending=True).values)
    assert found.scores.min() > 0.05
    assert found.scores.max() <= 1
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert found.boxes.min() >= 0
    assert (found.boxes[:, 2] <= width + 1e-3).all()
    assert (found.boxes[:, 3] <= height + 1e-3).all()
    assert found.names == [SHAPE_CLASSES[label] for label in found.labels]


def test_a_path_an_image_and_an_array_are_one_image(detector, images):
    expected = detector(str(images[0]))
    assert len(expected)
    for image in (images[0], Image.open(images[0]), np.asarray(Image.open(images[0]))):
        assert_same(detector(image), expected)


def test_a_list_gives_what_its_images_give_alone(detector, images):
    together = detector([images[0], Image.open(images[1]), read_image(images[2]), images[0]])
    assert [len(found) > 0 for found in together] == [True] * 4
    for found, path in zip(together, [*images, images[0]], strict=True):
        assert_same(found, detector(path))
    assert_same(detector((images[1],))[0], together[1])
    assert detector([]) == []


def test_the_way_through_the_network(detector, weights, images):
    """Against the network with its BN layers unfolded, on an image resized by hand."""
    network, architecture = detector_from_tensors(*read_weights(weights), str(weights))
    image = read_image(images[0])
    height, width = SHORT_SIDE, round(image.shape[1] * SHORT_SIDE / image.shape[0])
    assert width <= LONG_SIDE
    resized = to_tensor(resize_image(image, height, width))
    scale = height / image.shape[0], width / image.shape[1]
    expected = detect_image(
        [DetectorMember(network, architecture, SHORT_SIDE, LONG_SIDE)],
        [ResizedImage({SHORT_SIDE: resized}, scale)],
        DetectionTestConfig(proposals=30),
    )
    found = detector(image)
    assert torch.equal(found.labels, expected.labels)
    assert torch.allclose(found.scores, expected.scores, atol=1e-4)
    assert torch.allclose(found.boxes, expected.boxes, atol=0.05)


@pytest.mark.parametrize(
    "mode", ["L", "1", "LA", "P", "PA", "RGBA", "CMYK", "RGBX", "YCbCr", "HSV", "La", "RGBa"]
)
def test_images_of_other_modes(detector, mode):
    """An image of another mode is its RGB form; alpha is dropped."""
    drawn = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    image = Image.fromarray(drawn)
    for step in {"La": ("LA", "La"), "RGBa": ("RGBA", "RGBa")}.get(mode, (mode,)):
        image = image.convert(step)
    if mode in ("La", "RGBa"):
        assert np.array_equal(as_image(image), as_image(image.convert(f"{mode[:-1]}A")))
        return
    if mode == "RGBA":
        image.putalpha(7)
        assert np.array_equal(as_image(image), drawn)
    assert_same(detector(image), detector(np.asarray(image.convert("RGB"))))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8), np.uint8), r"\(H, W, 3\) uint8 RGB, this is \(8, 8\) uint8"),
        (np.zeros((8, 8, 4), np.uint8), r"this is \(8, 8, 4\)"),
        (np.zeros((3, 8, 8), np.uint8), r"this is \(3, 8, 8\)"),
        (np.zeros((8, 8, 3), np.float32), "float32"),
        (np.zeros((0, 8, 3), np.uint8), r"this is \(0, 8, 3\)"),
        (Image.new("I;16", (8, 8)), "mode I;16 has no fixed range"),
        (Image.new("F", (8, 8)), "mode F"),
        (torch.zeros(3, 8, 8), "not Tensor"),
        (7, "not int"),
    ],
)
def test_images_of_another_form_are_refused(detector, image, message):
    with pytest.raises(UserError, match=message):
        detector(image)
    with pytest.raises(UserError, match=message):
        detector([image])


def test_views_that_run_backward(detector, images):
    image = read_image(images[0])
    for view in (image[..., ::-1], image[::-1], image[:, ::-1], image.transpose(1, 0, 2), image[::2, ::2]):
        assert_same(detector(view), detector(view.copy()))


def test_results_are_ordinary_tensors(detector, images, tmp_path):
    """They can be changed, and used beside parameters."""
    found = detector(images[0])
    again = detector(images[0])
    classes = detres.load(write_tiny_classifier(tmp_path / "c.safetensors"), device="cpu")(images[0])
    for tensor in (found.boxes, found.scores, found.labels, classes.scores):
        assert not tensor.is_inference()
        tensor.add_(1)
        if tensor.is_floating_point():
            (tensor * torch.ones(1, requires_grad=True)).sum().backward()
    assert torch.equal(found.boxes, again.boxes + 1)
    assert_same(detector(images[0]), again)
    found.boxes.requires_grad_()
    found.labels.sub_(1)
    assert found.draw().shape == found.image.shape
    from_pil = detector(Image.open(images[0]))
    from_pil.image[:] = 0


@pytest.mark.parametrize(
    "device", ["cpu", "cpu:0", "auto", None, torch.device("cpu"), torch.device("cpu", 0)]
)
def test_devices(device, weights, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert str(detres.load(weights, device=device).device) == "cpu"


@pytest.mark.parametrize(
    "device",
    [
        *(
            0,
            1,
            -1,
            True,
            1.0,
            b"cpu",
            ["cpu"],
            torch.device("meta"),
            torch.device("mps"),
            torch.device("cuda"),
        ),
        *("", "gpu", "CPU", "cpu:1", " cpu", "cpu\n"),
        *("cuda:", "cuda:-1", "cuda:\N{SUPERSCRIPT TWO}", "cuda:" + "9" * 5_000),
    ],
    ids=str,
)
def test_devices_that_are_none(device, weights, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device "):
        detres.load(weights, device=device)


@pytest.mark.parametrize("paths", [None, 7, b"w.safetensors", [7], ["w.safetensors", None]])
def test_weights_that_are_no_paths(paths):
    with pytest.raises(UserError, match="weights must be a path, or a list of paths, not"):
        detres.load(paths, device="cpu")


def test_a_file_that_is_not_there(detector):
    with pytest.raises(DataError, match=r"picture none\.jpg does not exist"):
        detector("none.jpg")


def test_options_of_a_call(detector, images):
    whole = detector(images[0])
    sure = detector(images[0], score_thresh=0.5)
    above = whole.scores > 0.5
    assert 0 < len(sure) < len(whole)
    assert torch.equal(sure.scores, whole.scores[above])
    assert len(detector(images[0], detections_per_img=3)) == 3
    assert_same(detector(images[0], proposals=30), whole)
    assert len(detector(images[0], proposals=5)) < len(whole)
    assert len(detector(images[0], nms_thresh=1.0)) > len(whole)
    assert_same(detector(images[0]), whole)  # a call changes nothing for the next


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_thres": 0.3}, r"'score_thres' \(did you mean 'score_thresh'\?\); they are score_thresh, "),
        ({"refined": True}, r"'refined' \(did you mean 'refine'\?\)"),
        ({"refine": 1}, "test option refine=1"),
        ({"scales": ()}, r"test option scales=\[\]: \[\] should be shorter sides in rising order, such as"),
        ({"scales": (600, 400)}, r"test option scales=\[600, 400\]: \[600, 400\] should be shorter sides"),
        ({"scales": [400, "600"]}, "test option scales"),
        ({"score_thresh": 1.5}, r"test option score_thresh=1\.5: .*less than 1"),
        ({"proposals": "many"}, "test option proposals='many'"),
    ],
)
def test_options_that_are_none(detector, options, message):
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(UserError, match=message):
        detector(image, **options)
    with pytest.raises(UserError, match=message):
        detres.evaluate(detector, "shapes:1", split="val", **options)


def test_test_options_come_with_the_weights(tmp_path, images):
    weights = write_detector(tmp_path / "e.safetensors", test={"score_thresh": 0.6, "proposals": 30})
    eager = detres.load(weights, device="cpu")
    assert isinstance(eager, Detector)
    assert eager(images[0]).scores.min() > 0.6
    assert eager(images[0], score_thresh=0.05).scores.min() < 0.6


def test_draw(detector, images, tmp_path):
    found = detector(images[0], score_thresh=0.5)
    before = found.image.copy()
    drawn = found.draw(tmp_path / "deep" / "out.png")
    assert np.array_equal(found.image, before)
    assert drawn.shape == before.shape
    assert not np.array_equal(drawn, before)
    assert np.array_equal(read_image(tmp_path / "deep" / "out.png"), drawn)
    with pytest.raises(UserError, match="must end in one of"):
        found.draw(tmp_path / "out.gif")


def test_draw_replaces_what_a_link_leads_to(detector, images, tmp_path):
    found = detector(images[0])
    (tmp_path / "there").mkdir()
    real, link = tmp_path / "there" / "real.png", tmp_path / "OUT.PNG"
    real.write_bytes(b"old")
    real.chmod(0o600)
    link.symlink_to(real)
    drawn = found.draw(link)
    assert link.is_symlink()
    assert np.array_equal(read_image(real), drawn)
    assert real.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in real.parent.iterdir()] == ["real.png"]


def test_nothing_found(detector, images):
    found = detector(images[0], score_thresh=0.99999)
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert found.names == []
    assert found.to_coco(image_id=7) == []
    assert np.array_equal(found.draw(), found.image)


def test_to_coco(detector, images, tmp_path):
    """Boxes as [x, y, width, height]; category ids are the training data's own, else 1..K."""
    found = detector(images[0])
    rows = found.to_coco(image_id=7)
    assert [row["image_id"] for row in rows] == [7] * len(found)
    assert [row["category_id"] - 1 for row in rows] == found.labels.tolist()
    boxes = torch.tensor([row["bbox"] for row in rows])
    assert torch.allclose(boxes[:, :2], found.boxes[:, :2])
    assert torch.allclose(boxes[:, :2] + boxes[:, 2:], found.boxes[:, 2:], atol=1e-3)
    assert [row["score"] for row in rows] == found.scores.tolist()
    ids = (1, 13, 16, 17, 18, 90)
    gappy = detres.load(write_detector(tmp_path / "g.safetensors", category_ids=ids), device="cpu")
    assert [row["category_id"] for row in gappy(str(images[0])).to_coco("a.png")] == [  # type: ignore[union-attr]
        ids[label] for label in found.labels
    ]


def test_a_split_is_its_images_one_by_one(detector):
    scenes = shapes_annotations("val", 3)
    table, seconds = detector.detect_split(scenes, options={"score_thresh": 0.3}, quiet=True)
    assert seconds > 0
    for index in range(3):
        rows = table.images == index
        found = detector(scenes.paths[index], score_thresh=0.3)
        assert np.array_equal(table.boxes[rows], found.boxes.numpy())
        assert np.allclose(table.scores[rows], found.scores.numpy(), atol=1e-7)
        assert np.array_equal(table.labels[rows], found.labels.numpy())


def test_evaluate(detector):
    figures = detres.evaluate(detector, "shapes:6", split="val")
    coco = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    assert list(figures) == [*coco, "mAP", "mAP_11point", "mAP_area"]
    assert all(value is None or 0 <= value <= 1 for value in figures.values())
    assert figures["AR100"] > 0  # type: ignore[operator]


def test_evaluate_on_other_classes(tmp_path):
    other = detres.load(
        write_detector(tmp_path / "o.safetensors", [*SHAPE_CLASSES[:-1], "rings"]), device="cpu"
    )
    with pytest.raises(DataError, match=r"class names differ.*missing there: rings; unknown: ring"):
        detres.evaluate(other, "shapes:2", split="val")  # type: ignore[arg-type]


def test_a_classifier(tmp_path, images):
    """Softmax of the network on the central crop, likeliest first."""
    classifier = detres.load(write_tiny_classifier(tmp_path / "c.safetensors"), device="cpu")
    assert isinstance(classifier, Classifier)
    classified = classifier(images[0])
    assert sorted(classified.names) == sorted(SHAPE_CLASSES)
    assert classified.scores.sum().item() == pytest.approx(1)
    assert torch.equal(classified.scores, classified.scores.sort(descending=True).values)
    both = classifier([images[1], Image.open(images[0])])
    assert both[1].names == classified.names
    assert torch.equal(both[1].scores, classified.scores)
    assert not torch.equal(classifier(images[0], crops=10).scores, classified.scores)
    with pytest.raises(UserError, match=r"no test option 'scale' of classifiers \(did you mean 'scales'\?\)"):
        classifier(images[0], scale=(32,))
    with pytest.raises(UserError, match="crops and scales are two ways"):
        classifier(images[0], scales=(32,), crops=10)
    with pytest.raises(UserError, match="evaluate needs a detector, this is a Classifier"):
        detres.evaluate(classifier, "shapes:2", split="val")  # type: ignore[arg-type]


ALL = {"refine": True, "box_voting": True, "flip": True, "scales": (64, 96, 128)}


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory) -> Path:
    """ResNet-50 with global context at 80 px, its classes in another order."""
    return write_detector(
        tmp_path_factory.mktemp("weights") / "o.safetensors",
        SHAPE_CLASSES[::-1],
        category_ids=tuple(range(10, 10 + len(SHAPE_CLASSES))),
        seed=1,
        network_config=NetworkConfig.model_validate({"name": "resnet50", "width": 0.125}),
        context=True,
        sides=(80, 120),
    )


def test_one_scale_and_no_switch_is_the_plain_test(detector, images):
    plain = detector(images)
    same = detector(images, scales=[SHORT_SIDE], refine=False, box_voting=False, flip=False)
    for found, expected in zip(same, plain, strict=True):
        assert_same(found, expected)
    assert_same(detector(images[0], scales=np.array([SHORT_SIDE])), plain[0])
    assert_same(detector(images[0], scales=None), plain[0])


@pytest.mark.parametrize("name", ALL)
def test_each_switch_changes_what_is_found(detector, images, name):
    plain, switched = detector(images[0]), detector(images[0], **{name: ALL[name]})
    same_number = len(plain) == len(switched)
    assert not same_number or not torch.equal(plain.boxes, switched.boxes)
    assert_same(detector(images[0]), plain)


def test_an_ensemble_of_a_file_with_itself_is_the_file(weights, detector, images):
    both = detres.load([weights, weights], device="cpu")
    assert isinstance(both, Detector)
    assert (both.class_names, both.category_ids) == (detector.class_names, detector.category_ids)
    for options in ({}, ALL, {"precision": "bfloat16"}):
        for path in images:
            assert_same(both(path, **options), detector(path, **options))


def test_an_ensemble_of_different_networks(weights, other_weights, images):
    """Labels are the first file's; the order of the files changes nothing but which names come first."""
    ensembles = [
        detres.load(pair, device="cpu") for pair in ([weights, other_weights], [other_weights, weights])
    ]
    for options in ({}, ALL):
        one, two = (ensemble(images[0], **options) for ensemble in ensembles)  # type: ignore[arg-type]
        assert isinstance(one, DetectionResult)
        assert isinstance(two, DetectionResult)
        assert one.class_names == two.class_names[::-1] == SHAPE_CLASSES
        assert len(one) > 5
        assert sorted(one.names) == sorted(two.names)
        assert torch.allclose(one.scores, two.scores, atol=1e-4)
    assert two.to_coco(1)[0]["category_id"] == 10 + int(two.labels[0])


def test_an_ensemble_finds_a_split_as_its_images(weights, other_weights):
    both = detres.load([weights, other_weights], device="cpu")
    assert isinstance(both, Detector)
    scenes = shapes_annotations("val", 2)
    table, _ = both.detect_split(scenes, options=ALL, quiet=True)
    for index in range(2):
        found, rows = both(scenes.paths[index], **ALL), table.images == index
        assert np.array_equal(table.boxes[rows], found.boxes.numpy())
        assert np.array_equal(table.labels[rows], found.labels.numpy())


def test_files_that_make_no_ensemble(weights, tmp_path):
    names = [*SHAPE_CLASSES[:-1], "rings"]
    other = write_detector(tmp_path / "o.safetensors", names)
    classifier = write_tiny_classifier(tmp_path / "c.safetensors")
    lacking = rf"o\.safetensors has 5 \(.*\); missing there: {SHAPE_CLASSES[-1]}; unknown: rings"
    for paths, message in (
        ([weights, other], lacking),
        (
            [weights, classifier],
            r"c\.safetensors: weights for classification, not for detection",
        ),
        (
            [classifier, weights],
            "weights for detection, not for classification",
        ),
        ([weights, tmp_path / "none.safetensors"], "no such weights file"),
        ([], "0 weights files"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            detres.load(paths, device="cpu")
        assert len(str(caught.value).splitlines()) == 1
    assert isinstance(detres.load([weights], device="cpu"), Detector)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "localization"}, "weights for localization"),
        ({"sizes": {}}, "the metadata lack 'short_side'; the file is damaged or newer"),
        ({"test": {"votes": True}}, "metadata are damaged or newer: unknown test option 'votes'"),
        ({"architecture": {}}, "architecture key model"),
        ({"class_names": ("one", "two")}, "weights of another architecture"),
    ],
)
def test_weights_with_other_metadata(weights, tmp_path, changes, message):
    tensors, metadata = read_weights(weights)
    save_weights(tmp_path / "x.safetensors", tensors, Metadata.model_validate({**dict(metadata), **changes}))
    with pytest.raises(WeightsError, match=message):
        detres.load(tmp_path / "x.safetensors")


def test_a_device_that_is_not_there(weights):
    with pytest.raises(UserError, match="device cuda:99"):
        detres.load(weights, device="cuda:99")


def test_numbers_of_numpy_are_test_options(detector, images):
    """A score from a sweep, a count from an array: they mean what Python's numbers do."""
    plain = detector(images[0], score_thresh=0.25, detections_per_img=7)
    for score, count in ((np.float32(0.25), np.int64(7)), (np.float16(0.25), np.uint8(7))):
        assert_same(detector(images[0], score_thresh=score, detections_per_img=count), plain)
    with pytest.raises(UserError, match=r"test option score_thresh=1\.5"):
        detector(images[0], score_thresh=np.float64(1.5))
    with pytest.raises(UserError, match="test option detections_per_img"):
        detector(images[0], detections_per_img=np.float32(2.5))
    with pytest.raises(UserError, match="test option detections_per_img"):
        detector(images[0], detections_per_img=np.bool_(True))


@pytest.mark.parametrize("write", [write_detector, write_tiny_classifier])
def test_a_weights_file_is_read_once(write, tmp_path, monkeypatch):
    weights, reads = write(tmp_path / "w.safetensors"), []

    def counted(path):
        reads.append(path)
        return read_safetensors(path)

    monkeypatch.setattr("detres.weights.checkpoint.read_safetensors", counted)
    detres.load(weights, device="cpu")
    assert reads == [weights]


def test_an_ensemble_of_classifiers_averages_their_scores(tmp_path, images):
    """By hand from each alone; the second names its classes in another order."""
    first = write_tiny_classifier(tmp_path / "a.safetensors")
    tensors, metadata = read_weights(write_tiny_classifier(tmp_path / "b.safetensors"))
    tensors["fc.weight"] = tensors["fc.weight"].flip(0) * 3
    save_weights(
        tmp_path / "b.safetensors",
        tensors,
        metadata.model_copy(update={"class_names": tuple(reversed(SHAPE_CLASSES))}),
    )
    alone = [
        detres.load(path, device="cpu")(images[0], flip=True) for path in (first, tmp_path / "b.safetensors")
    ]
    both = detres.load([first, tmp_path / "b.safetensors"], device="cpu")(images[0], flip=True)
    for name, score in zip(both.names, both.scores.tolist(), strict=True):
        expected = sum(one.scores[one.names.index(name)].item() for one in alone) / 2
        assert score == pytest.approx(expected, rel=1e-5)
    other = write_tiny_classifier(tmp_path / "c.safetensors", ("x", "y"))
    with pytest.raises(
        WeightsError, match=r"c\.safetensors has 2 \(x, y\); missing there: .*; unknown: x, y"
    ):
        detres.load([first, other], device="cpu")
