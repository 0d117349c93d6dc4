"""Exact BN statistics in a weights file: they are those of the crops, and what was constant keeps its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from detres.classification.bn_statistics import write_statistics
from detres.classification.classifier import build_classifier, crop_of, read_classifier, write_classifier
from detres.classification.config import ClassifierArchitecture
from detres.classification.evaluate import network_input
from detres.classification.responses import responses_of_weights
from detres.data.classification_samples import ClassificationDataset, collate_classification
from detres.data.config import CropConfig
from detres.data.preprocessing import TORCHVISION
from detres.data.records import Strings
from detres.data.shapes import shapes_labels
from detres.errors import DataError, WeightsError
from detres.networks.config import NetworkConfig
from detres.networks.norm import FrozenBatchNorm2d
from detres.weights.foreign import read_backbone

SMALL = NetworkConfig(name="resnet18", width=0.125)
CROP = CropConfig(size=32, train_sides=(32, 40), test_side=32)


def write(path, architecture) -> None:
    network = build_classifier(architecture, 3, torch.Generator().manual_seed(0))
    write_classifier(
        path,
        network,
        architecture,
        class_names=("a", "b", "c"),
        preprocessing=TORCHVISION,
        crop=CROP,
        source="a test",
    )


@pytest.fixture(scope="module")
def images():
    return shapes_labels("train", 24, side=32)


def conv1_outputs(path, pictures, seed=0):
    """What enters bn1, of all training crops in one batch."""
    network, *_ = read_classifier(path)
    crops = ClassificationDataset(pictures, CROP, train=True, seed=seed)
    batch = collate_classification([crops[index] for index in range(len(pictures))])
    with torch.no_grad():
        images = network_input(batch, TORCHVISION, None)
        return F.conv2d(images, network.state_dict()["conv1.weight"], stride=2, padding=3).double()


@pytest.mark.parametrize("exact", [False, True])
def test_statistics_are_those_of_all_crops_whatever_the_batch(tmp_path, images, exact):
    write(tmp_path / "in.safetensors", ClassifierArchitecture(network=SMALL))
    report = write_statistics(
        tmp_path / "in.safetensors",
        images,
        tmp_path / "out.safetensors",
        batch=7,
        exact=exact,
        workers=0,
        quiet=True,
    )
    assert (report.images, report.layers, report.constant) == (24, 20, 0)
    network, architecture, metadata = read_classifier(tmp_path / "out.safetensors")
    assert architecture.frozen_batch_norm
    assert isinstance(network.bn1, FrozenBatchNorm2d)
    maps = conv1_outputs(tmp_path / "in.safetensors", images)
    variance, mean = torch.var_mean(maps, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(network.bn1.running_mean.double(), mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.bn1.running_var.double(), variance, rtol=1e-4, atol=1e-6)
    assert "BN statistics of 24 images" in metadata.source
    assert read_backbone(tmp_path / "out.safetensors").missing == ()


def test_constant_stages_keep_their_statistics_unless_asked(tmp_path, images):
    write(tmp_path / "in.safetensors", ClassifierArchitecture(network=SMALL, frozen_stages=4))
    before = read_classifier(tmp_path / "in.safetensors")[0].state_dict()
    for everywhere, layers in ((False, 5), (True, 20)):
        report = write_statistics(
            tmp_path / "in.safetensors",
            images,
            tmp_path / "out.safetensors",
            num_images=8,
            everywhere=everywhere,
            workers=0,
            quiet=True,
        )
        assert (report.images, report.layers, report.constant) == (8, layers, 20 - layers)
        after = read_classifier(tmp_path / "out.safetensors")[0].state_dict()
        changed = {
            name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])
        }
        assert changed == ({"bn1", "layer1", "layer2", "layer3", "layer4"} if everywhere else {"layer4"})


def test_file_without_batch_norm_to_compute_is_refused(tmp_path, images):
    write(tmp_path / "in.safetensors", ClassifierArchitecture(network=SMALL, frozen_batch_norm=True))
    with pytest.raises(WeightsError, match="all its BN is constant already"):
        write_statistics(tmp_path / "in.safetensors", images, tmp_path / "out.safetensors", quiet=True)
    assert not (tmp_path / "out.safetensors").exists()


def test_exact_reports_what_one_pass_would_be_off_by(tmp_path, images):
    """Truth: the files that the two forms write."""
    write(tmp_path / "in.safetensors", ClassifierArchitecture(network=SMALL))
    reports, states = {}, {}
    for exact in (False, True):
        out = tmp_path / f"{exact}.safetensors"
        reports[exact] = write_statistics(
            tmp_path / "in.safetensors", images, out, batch=7, exact=exact, workers=0, quiet=True
        )
        states[exact] = read_classifier(out)[0].state_dict()
    assert reports[False].one_pass == ()
    first, *others = reports[True].one_pass
    assert (first.layer, len(others)) == ("bn1", 19)
    assert max(first.mean, first.variance) <= 1e-5
    assert min(layer.variance for layer in others) > 1e-4
    last = others[-1]
    rough, true = (states[exact][f"{last.layer}.running_var"].double() for exact in (False, True))
    assert last.variance == pytest.approx(float(((rough - true).abs() / true).max()))


def test_it_says_how_much_the_outputs_change(tmp_path, images, caplog):
    """Statistics rebuilt so that frozen BN computes the same are not the layers' own: new ones change the network.

    Its own statistics, computed once more from the same crops, change nothing.
    """
    write(tmp_path / "in.safetensors", ClassifierArchitecture(network=SMALL, frozen_batch_norm=True))
    options: dict[str, Any] = {"batch": 8, "exact": True, "everywhere": True, "workers": 0, "quiet": True}
    paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    with caplog.at_level("WARNING", "detres"):
        foreign = write_statistics(tmp_path / "in.safetensors", images, paths[0], **options)
    assert foreign.change.logits > 0.25
    assert foreign.change.images == 8
    assert "were not those of these images" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING", "detres"):
        own = write_statistics(paths[0], images, paths[1], **options)
    assert own.change.logits < 1e-4
    assert own.change.classes == 0
    assert "were not those of these images" not in caplog.text


def test_crops_are_the_same_in_every_pass_kept_or_not(tmp_path, images, monkeypatch):
    """Where they do not fit they are decoded again; the result is bit for bit the same."""
    write(tmp_path / "in.safetensors", ClassifierArchitecture(network=SMALL))
    reads = []
    original = ClassificationDataset.__getitem__
    monkeypatch.setattr(
        ClassificationDataset, "__getitem__", lambda self, key: reads.append(key) or original(self, key)
    )
    files = []
    for limit in (1 << 29, 100):
        monkeypatch.setattr("detres.classification.bn_statistics.KEPT_BYTES", limit)
        reads.clear()
        out = tmp_path / f"{limit}.safetensors"
        write_statistics(tmp_path / "in.safetensors", images, out, batch=9, exact=True, workers=0, quiet=True)
        files.append((out.read_bytes(), len(reads)))
    assert files[0][0] == files[1][0]
    assert files[0][1] == 24 + 9 < files[1][1]


def test_a_single_image_left_over_goes_with_the_batch_before(tmp_path, images):
    """Its maps of 1x1 have no variance of their own: crops of 32 have such maps in the last stage."""
    write(tmp_path / "in.safetensors", ClassifierArchitecture(network=SMALL))
    for count, batch in ((9, 8), (5, 1)):
        report = write_statistics(
            tmp_path / "in.safetensors",
            images,
            tmp_path / "out.safetensors",
            num_images=count,
            batch=batch,
            workers=0,
            quiet=True,
        )
        assert report.images == count
    with pytest.raises(DataError, match="BN statistics of 1 images: two are needed"):
        write_statistics(
            tmp_path / "in.safetensors", images, tmp_path / "o.safetensors", num_images=1, workers=0
        )


def test_random_colors_are_off(tmp_path, images):
    """Weights whose training shifted colors: the same statistics, and the crops they were trained on are kept."""
    shifted = CROP.model_copy(update={"pca_color": 0.1})
    write(tmp_path / "in.safetensors", ClassifierArchitecture(network=SMALL))
    network, architecture, metadata = read_classifier(tmp_path / "in.safetensors")
    write_classifier(
        tmp_path / "shifted.safetensors",
        network,
        architecture,
        class_names=metadata.class_names,
        preprocessing=metadata.preprocessing,
        crop=shifted,
        source="a test",
    )
    found = []
    for name in ("in", "shifted"):
        write_statistics(
            tmp_path / f"{name}.safetensors",
            images,
            tmp_path / f"{name}.out.safetensors",
            workers=0,
            quiet=True,
        )
        found.append(read_classifier(tmp_path / f"{name}.out.safetensors"))
    assert torch.equal(found[0][0].bn1.running_var, found[1][0].bn1.running_var)
    assert crop_of(found[1][2]) == shifted


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_one_line(tmp_path, images, workers):
    write(tmp_path / "in.safetensors", ClassifierArchitecture(network=SMALL))
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 and no more")
    paths = [images.paths[index] for index in range(4)]
    wrong = replace(
        images.select([0, 1, 2, 3]),
        paths=Strings([*paths[:3], str(broken)]),
        class_names=("a", "b", "c"),
        labels=np.array([0, 1, 2, 0]),
    )
    for compute in (
        lambda: write_statistics(
            tmp_path / "in.safetensors",
            wrong,
            tmp_path / "o.safetensors",
            batch=2,
            workers=workers,
            quiet=True,
        ),
        lambda: responses_of_weights(
            tmp_path / "in.safetensors", wrong, batch=2, workers=workers, quiet=True
        ),
    ):
        with pytest.raises(DataError, match=r"^picture .*broken\.jpg is truncated[^\n]*$"):
            compute()
