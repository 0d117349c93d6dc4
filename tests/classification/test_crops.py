"""Ways to look at a picture: against crops cut by hand, separate forwards, and the central crop itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detres.api.classifier import Classifier
from detres.classification.classifier import build_classifier
from detres.classification.config import ClassificationTestConfig as Options
from detres.classification.config import ClassifierArchitecture
from detres.classification.crops import EvalCrops, EvalCropSample, collate_eval_crops, score_eval_crops
from detres.classification.evaluate import (
    ClassifierMember,
    Scores,
    average_scores,
    classify_images,
    evaluate_classifier,
    read_classifier_members,
)
from detres.data.classification_samples import ClassificationDataset
from detres.data.config import CropConfig
from detres.data.preprocessing import TORCHVISION, MeanImage, Preprocessing, normalize, to_tensor
from detres.data.records import ImageLabels, Strings
from detres.data.shapes import shapes_labels
from detres.data.transforms import center_crop, resize_shorter, ten_crops
from detres.errors import UserError, WeightsError
from detres.networks.config import NetworkConfig

CROP = CropConfig(size=32, train_sides=(32, 40), test_side=40)
CPU = torch.device("cpu")
NAMES = ("a", "b", "c", "d", "e", "f")


def lively(seed: int = 0, name: str = "resnet18") -> Any:  # its children are what the test knows them to be
    """A narrow classifier of random weights whose scores differ from picture to picture."""
    architecture = ClassifierArchitecture(
        network=NetworkConfig.model_validate({"name": name, "width": 0.125})
    )
    network: Any = build_classifier(architecture, len(NAMES), torch.Generator().manual_seed(seed)).eval()
    with torch.no_grad():
        network.fc.weight.mul_(30)
    return network


def textured(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def scores_of(network: nn.Module, images: list[np.ndarray]) -> Tensor:
    """One forward each: (N, K) float64."""
    with torch.inference_mode():
        logits = [network(normalize(to_tensor(image)[None], TORCHVISION)) for image in images]
    return torch.cat(logits).double().softmax(dim=1)


def test_ten_crops_are_center_corners_and_mirrors():
    config = CropConfig(size=4, train_sides=(4, 4), test_side=6)
    image = textured(6, 9)
    crops = ten_crops(image, config)
    expected = [image[1:5, 2:6], image[:4, :4], image[:4, 5:], image[2:, :4], image[2:, 5:]]
    for crop, wanted in zip(crops, [*expected, *(part[:, ::-1] for part in expected)], strict=True):
        assert np.array_equal(crop, wanted)
    assert np.array_equal(crops[0], center_crop(image, config))
    assert all(
        crop.shape == (4, 4, 3) for crop in ten_crops(textured(3, 2), CropConfig(size=4, test_side=None))
    )


@torch.inference_mode()
def test_ten_crops_score_as_ten_forwards():
    network, image = lively(), textured(50, 70)
    batch = collate_eval_crops([EvalCropSample(EvalCrops(crops=10).tensors(image, CROP), 0)])
    found = score_eval_crops(network, TORCHVISION, batch, CPU)
    separate = scores_of(network, ten_crops(image, CROP))
    assert (separate.std(dim=0) > 1e-4).any()
    torch.testing.assert_close(found[0], separate.mean(dim=0), rtol=1e-5, atol=1e-7)


@torch.inference_mode()
@pytest.mark.parametrize("recipe", [TORCHVISION, "per pixel"])
def test_dense_test_of_a_square_of_224_is_the_central_crop(recipe):
    crop = CropConfig(size=224, train_sides=(224, 224), test_side=224)
    if recipe == "per pixel":
        mean = MeanImage(torch.rand(3, 224, 224) * 255)
        recipe = Preprocessing(value_range=255, mean=(120, 110, 100), std=(60, 60, 60), mean_image=mean)
    network, image = lively(), textured(224, 224)
    scores = [
        score_eval_crops(
            network,
            recipe,
            collate_eval_crops([EvalCropSample(views.tensors(image, crop), 0)]),
            CPU,
            dense=dense,
        )
        for views, dense in ((EvalCrops(scales=(224,)), True), (EvalCrops(), False))
    ]
    assert torch.equal(scores[0], scores[1])


@torch.inference_mode()
def test_dense_test_averages_logits_over_positions_and_scores_over_scales():
    network, image = lively(), textured(60, 100)
    batch = collate_eval_crops([EvalCropSample(EvalCrops(scales=(48, 64, 96)).tensors(image, CROP), 0)])
    assert [tuple(crop.shape[2:]) for crop in batch.crops] == [(48, 80), (64, 107), (96, 160)]
    found = score_eval_crops(network, TORCHVISION, batch, CPU, dense=True)
    expected = []
    for side in (48, 64, 96):
        maps = network.features(normalize(to_tensor(resize_shorter(image, side))[None], TORCHVISION))
        logits = F.conv2d(maps, network.fc.weight[:, :, None, None], network.fc.bias)  # at each position
        expected.append(logits.mean(dim=(2, 3)).double().softmax(dim=1))
    torch.testing.assert_close(found, torch.stack(expected).mean(dim=0), rtol=1e-4, atol=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize(
    "views", [EvalCrops(flip=True), EvalCrops(scales=(40, 48), flip=True), EvalCrops(crops=10, flip=True)]
)
def test_flip_makes_a_image_and_its_mirror_equal(views):
    network, image = lively(), textured(40, 40)
    found = [
        score_eval_crops(
            network,
            TORCHVISION,
            collate_eval_crops([EvalCropSample(views.tensors(picture, CROP), 0)]),
            CPU,
            dense=bool(views.scales),
        )
        for picture in (image, image[:, ::-1])
    ]
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize(
    "views", [EvalCrops(), EvalCrops(crops=10), EvalCrops(scales=(32, 48)), EvalCrops(flip=True)]
)
def test_scores_do_not_depend_on_the_batch(views):
    images = shapes_labels("val", 11, side=48)
    member = ClassifierMember(lively(), TORCHVISION, CROP, images.class_names)
    whole, single = (classify_images(member, images, views, batch=batch, quiet=True) for batch in (64, 1))
    np.testing.assert_allclose(whole.scores, single.scores, rtol=1e-4, atol=1e-7)
    assert whole.labels.tolist() == images.labels.tolist()
    np.testing.assert_allclose(whole.scores.sum(axis=1), 1)
    crops = ClassificationDataset(images, CROP, train=False)
    assert evaluate_classifier(member.network, TORCHVISION, crops, views, quiet=True).images == 11


def test_no_images_have_no_figures():
    nothing = ImageLabels(Strings([]), np.zeros(0, np.int64), NAMES)
    found = classify_images(ClassifierMember(lively(), TORCHVISION, CROP, NAMES), nothing, quiet=True)
    figures = found.figures()
    assert (figures.top1_error, figures.top5_error, figures.loss, figures.images) == (None, None, None, 0)


def test_ensemble_by_hand():
    """Two networks that are wrong alone and right together, and the other way round; classes in another order."""
    labels = np.array([0, 1])
    first = Scores(np.array([[0.4, 0.6, 0.0], [0.0, 0.9, 0.1]]), labels, 0)
    # the same classes as (c, a, b): a is its class 1, b its class 2
    second = Scores(np.array([[0.2, 0.8, 0.0], [0.95, 0.0, 0.05]]), np.array([1, 2]), 0)
    aligned = second.in_order([1, 2, 0])
    assert aligned.labels.tolist() == [0, 1]
    np.testing.assert_allclose(aligned.scores, [[0.8, 0.0, 0.2], [0.0, 0.05, 0.95]])
    both = average_scores([first, aligned])
    np.testing.assert_allclose(both.scores, [[0.6, 0.3, 0.1], [0.0, 0.475, 0.525]])
    assert [part.figures().top1_error for part in (first, aligned, both)] == [0.5, 0.5, 0.5]
    assert both.figures().loss == pytest.approx(-(np.log(0.6) + np.log(0.475)) / 2)


def test_members_of_other_classes_are_refused():
    members = [
        ClassifierMember(lively(), TORCHVISION, CROP, names, source)
        for names, source in ((NAMES, "first.safetensors"), (("b", "a"), "second.safetensors"))
    ]
    with pytest.raises(
        WeightsError,
        match=r"first\.safetensors has 6 .*, second\.safetensors has 2 .*; missing there: c, d, e, f",
    ):
        Classifier(members)


def test_vgg_needs_whole_images_of_224():
    network = build_classifier(
        ClassifierArchitecture(network=NetworkConfig(name="vgg16", width=0.125)), 6
    ).eval()
    batch = collate_eval_crops(
        [EvalCropSample(EvalCrops(scales=(200,)).tensors(textured(200, 300), CROP), 0)]
    )
    with pytest.raises(UserError, match="VGG needs shorter sides of at least 224"):
        score_eval_crops(network, TORCHVISION, batch, CPU, dense=True)


def test_crops_and_scales_exclude_each_other():
    with pytest.raises(ValueError, match="crops and scales are two ways to test"):
        Options(crops=10, scales=(224,))
    assert Options(scales=(224, 256), flip=True).eval_crops() == EvalCrops(1, (224, 256), True)


def test_files_of_an_ensemble(tmp_path):
    from tiny_models import write_tiny_classifier

    paths = [write_tiny_classifier(tmp_path / f"{name}.safetensors") for name in ("a", "b")]
    members = read_classifier_members(paths, CPU)
    assert [member.source for member in members] == [str(path) for path in paths]
    other = write_tiny_classifier(tmp_path / "c.safetensors", ("x", "y"))
    with pytest.raises(
        WeightsError,
        match=r"a\.safetensors has .*c\.safetensors has 2 \(x, y\); missing there: .*; unknown: x, y",
    ):
        read_classifier_members([*paths, other], CPU)
