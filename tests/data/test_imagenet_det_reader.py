"""ImageNet DET as ILSVRC packs it: folders, lists by class, WordNet ids, sizes that differ, the two halves of val.

Truths: files written by hand in the test, counts and boxes worked out beside them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from make_data import write_image, xml

from detres.cli import eval_det, prepare_imagenet_det
from detres.data.config import Source
from detres.data.detection_samples import DetectionDataset
from detres.data.formats import find_format, list_splits, read_annotations
from detres.data.prepare.imagenet_det import balanced_halves, class_counts, relative_imbalance
from detres.data.readers import imagenet_det
from detres.data.readers.imagenet_det import read_classes
from detres.data.records import DetectionTable
from detres.data.sources import read_sources
from detres.errors import DataError, UserError
from detres.evaluation.results_files import write_coco_results

ANT, BEE = "n00000001", "n00000002"
CAR = "n00000009"


def write_xml(root: Path, part: str, stem: str, text: str, *, size: tuple[int, int] = (100, 80)) -> None:
    path = root / "Annotations" / "DET" / part / f"{stem}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    jpeg = root / "Data" / "DET" / part / f"{stem}.JPEG"
    jpeg.parent.mkdir(parents=True, exist_ok=True)
    write_image(jpeg.with_suffix(".png"), *size).rename(jpeg)


@pytest.fixture
def ilsvrc(tmp_path) -> Path:
    root = tmp_path / "ILSVRC"
    lists = root / "ImageSets" / "DET"
    lists.mkdir(parents=True)
    (root / "devkit" / "data").mkdir(parents=True)
    (root / "devkit" / "data" / "map_det.txt").write_text(f"{BEE} 2 honey bee\n{ANT} 1 ant\n{CAR} 3 car\n")
    (lists / "train_1.txt").write_text(f"a/{ANT}_1 1\na/{ANT}_2 0\nextra0/x_7 -1\n")
    (lists / "train_2.txt").write_text(f"a/{ANT}_1 1\nb/{BEE}_5 1\nb/gone 1\n")
    (lists / "val.txt").write_text("v_1 1\nv_2 2\nv_3 3\n")
    (lists / "test.txt").write_text("t_1 1\n")
    write_xml(root, "train", f"a/{ANT}_1", xml([(ANT, (0, 0, 49, 39)), (BEE, (50, 40, 99, 79))]))
    write_xml(root, "train", f"a/{ANT}_2", xml([(ANT, (10, 10, 20, 20))]))
    write_xml(root, "train", f"b/{BEE}_5", xml([(BEE, (1, 1, 100, 80))]))
    write_xml(root, "val", "v_1", xml([(CAR, (10, 20, 29, 39))]))
    write_xml(root, "val", "v_2", xml([(ANT, (10, 20, 29, 39))], size=(50, 40)))
    write_xml(root, "val", "v_3", xml([]))
    return root


def test_it_is_found_out_by_looking(ilsvrc):
    assert find_format(ilsvrc) == "imagenet_det"
    assert find_format(ilsvrc.parent) == "imagenet_det"
    assert list_splits(ilsvrc) == ["train", "val"]


def test_train_is_the_union_of_the_lists_less_negatives(ilsvrc):
    annotations, report = read_annotations(ilsvrc, "train")
    assert [annotations.image_ids[index] for index in range(3)] == [f"a/{ANT}_1", f"a/{ANT}_2", f"b/{BEE}_5"]
    assert len(annotations) == 3
    assert annotations.class_names == ("ant", "honey bee", "car")
    assert annotations.category_ids == (1, 2, 3)
    assert annotations.labels.tolist() == [0, 1, 0, 1]
    # Corners are inclusive and count from 0; a last pixel counted from 1 stays inside the picture.
    assert annotations.boxes.tolist() == [
        [0, 0, 50, 40],
        [50, 40, 100, 80],
        [10, 10, 21, 21],
        [1, 1, 100, 80],
    ]
    assert report.counts() == {"picture without annotation file": 1}
    assert [annotations.is_exhaustive(index) for index in range(3)] == [False] * 3


@pytest.mark.parametrize("name", ["devkit/data/map_det.txt", "ImageSets/DET/val.txt"])
def test_text_that_is_not_utf8(ilsvrc, name):
    (ilsvrc / name).write_bytes(b"v_1 1 caf\xe9\n")
    with pytest.raises(DataError, match=rf"{name}: not UTF-8 text \(byte 9\); save it as UTF-8$"):
        read_annotations(ilsvrc, "val")


def test_a_size_that_is_not_the_images_is_rescaled_and_counted(ilsvrc):
    annotations, report = read_annotations(ilsvrc, "val")
    assert annotations.boxes.tolist() == [[10, 20, 30, 40], [20, 40, 60, 80]]
    assert annotations.sizes.tolist() == [[80, 100]] * 3
    (defect,) = report.defects
    assert defect.kind == "size differs from the annotation"
    assert "annotated at 50 x 40 (width x height), is 100 x 80" in defect.what
    assert defect.where.endswith("v_2.JPEG")
    assert DetectionDataset(annotations, 80, 100)[1].boxes.tolist() == [[20, 40, 60, 80]]


def test_boxes_are_the_same_where_only_results_are_evaluated(ilsvrc):
    """Truth: the boxes with pictures; of a missing picture (v_2) those of the XML, whose size then stands for it."""
    with_images, _ = read_annotations(ilsvrc, "val")
    without, report = read_annotations(ilsvrc, "val", need_images=False)
    assert without.boxes.tolist() == with_images.boxes.tolist()
    assert report.counts() == {"size differs from the annotation": 1}
    (ilsvrc / "Data" / "DET" / "val" / "v_2.JPEG").unlink()
    missing, report = read_annotations(ilsvrc, "val", need_images=False)
    assert missing.boxes.tolist() == [[10, 20, 30, 40], [10, 20, 30, 40]]
    assert missing.sizes.tolist() == [[80, 100], [40, 50], [80, 100]]
    (defect,) = report.defects
    assert defect.kind == "size not checked"
    assert defect.where.endswith("v_2.JPEG")


def test_an_object_of_one_pixel_is_kept(ilsvrc):
    """Corners are inclusive: (5, 5) is one pixel; (6, 5) is none."""
    write_xml(ilsvrc, "val", "v_3", xml([(ANT, (5, 10, 5, 19)), (ANT, (5, 7, 9, 7)), (ANT, (6, 1, 5, 9))]))
    annotations, report = read_annotations(ilsvrc, "val")
    assert annotations.boxes[2:].tolist() == [[5, 10, 6, 20], [5, 7, 10, 8]]
    assert report.counts()["zero-size box"] == 1


def test_val_and_train_together(ilsvrc):
    (joined, _) = read_sources([Source(dir=str(ilsvrc), split=split) for split in ("train", "val")])
    assert [joined.is_exhaustive(index) for index in range(6)] == [False] * 3 + [True] * 3
    assert [DetectionDataset(joined, 80, 100)[index].exhaustive for index in (2, 3)] == [False, True]
    assert [joined.select([5, 0]).is_exhaustive(index) for index in (0, 1)] == [True, False]


def test_an_unknown_wnid_is_one_clear_line(ilsvrc):
    """Files are counted, also in a folder whose name has a comma."""
    ilsvrc = ilsvrc.rename(ilsvrc.with_name("ILSVRC, 2014"))
    write_xml(ilsvrc, "val", "v_3", xml([("n12345678", (1, 1, 5, 5)), ("n12345678", (1, 1, 9, 9))]))
    write_xml(ilsvrc, "val", "v_2", xml([("n12345678", (1, 1, 5, 5))]))
    with pytest.raises(DataError) as caught:
        read_annotations(ilsvrc, "val")
    assert "\n" not in str(caught.value)
    assert (
        "v_2.xml, line 3: unknown category: 'n12345678' is not in map_det.txt (3 objects in 2 files)"
        in str(caught.value)
    )


def test_without_the_class_map(ilsvrc):
    (ilsvrc / "devkit" / "data" / "map_det.txt").rename(ilsvrc / "map_det.txt")
    assert read_annotations(ilsvrc, "val")[0].class_names[0] == "ant"
    (ilsvrc / "map_det.txt").write_text(f"{ANT} 1 ant\n{BEE} 1 bee\n")
    with pytest.raises(DataError, match=r"map_det\.txt: duplicate number 1"):
        read_annotations(ilsvrc, "val")
    (ilsvrc / "map_det.txt").write_text("ant\n")
    with pytest.raises(DataError, match=r"map_det\.txt, line 1: should be `wnid number name`"):
        read_annotations(ilsvrc, "val")
    (ilsvrc / "map_det.txt").unlink()
    with pytest.raises(DataError, match="put the development kit's folder `devkit`"):
        read_annotations(ilsvrc, "val")


def test_missing_things(ilsvrc):
    with pytest.raises(
        DataError, match=r"split 'val2' is not there; it has train, val; datasets/prepare_imagenet_det\.py"
    ):
        read_annotations(ilsvrc, "val2")
    (ilsvrc / "Data" / "DET" / "val" / "v_1.JPEG").unlink()
    with pytest.raises(DataError, match=r"v_1\.JPEG: missing picture"):
        read_annotations(ilsvrc, "val")
    truth, report = read_annotations(ilsvrc, "val", need_images=False)
    assert (len(truth), report.counts()) == (
        3,
        {"size not checked": 1, "size differs from the annotation": 1},
    )
    (ilsvrc / "Data" / "DET" / "val" / "v_2.JPEG").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"v_2\.JPEG: unreadable picture"):
        read_annotations(ilsvrc, "val", need_images=False)
    (ilsvrc / "Annotations" / "DET" / "val" / "v_3.xml").unlink()
    with pytest.raises(DataError, match="v_3: missing annotation"):
        read_annotations(ilsvrc, "val", need_images=False)


def test_prepare_writes_val1_and_val2(ilsvrc, monkeypatch, capsys):
    with pytest.raises(DataError, match=r"map_det.txt names \d classes, it should name 200"):
        prepare_imagenet_det.main(["--data", str(ilsvrc)])
    monkeypatch.setattr(prepare_imagenet_det, "CLASSES", len(read_classes(ilsvrc)))
    with pytest.raises(DataError, match="has 3 pictures, it should have 20121"):
        prepare_imagenet_det.main(["--data", str(ilsvrc)])
    monkeypatch.setattr(prepare_imagenet_det, "VAL_IMAGES", 3)
    for _ in range(2):  # the same lists again
        prepare_imagenet_det.main(["--data", str(ilsvrc)])
    assert "train: 3 pictures, 4 objects" in capsys.readouterr().out
    lists = [(ilsvrc / "ImageSets" / "DET" / f"{name}.txt").read_text() for name in ("val1", "val2")]
    assert sorted("".join(lists).splitlines()) == ["v_1 1", "v_2 2", "v_3 3"]
    assert list_splits(ilsvrc) == ["train", "val", "val1", "val2"]
    sizes = [len(read_annotations(ilsvrc, name)[0]) for name in ("val1", "val2")]
    assert sorted(sizes) == [1, 2]
    (ilsvrc / "ImageSets" / "DET" / "val1.txt").unlink()
    (ilsvrc / "ImageSets" / "DET" / "val2.txt").write_text("v_1 1\nv_2 2\nv_3 3\n")
    with pytest.raises(UserError, match=r"val2\.txt exists and lists other images"):
        prepare_imagenet_det.main(["--data", str(ilsvrc)])
    assert not (ilsvrc / "ImageSets" / "DET" / "val1.txt").exists()


def test_halves_are_balanced_in_every_class():
    """Truth: the imbalance counted by hand; a class of 31 objects (DET's rarest) cannot be nearer than 1 / 31."""
    generator = np.random.default_rng(3)
    counts = np.where(generator.random((600, 12)) < 0.1, generator.integers(1, 6, (600, 12)), 0)
    counts[:, 0] = 0
    counts[generator.choice(600, 31, replace=False), 0] = 1
    second = balanced_halves(counts)
    imbalance = [
        abs(counts[second, label].sum() - counts[~second, label].sum()) / counts[:, label].sum()
        for label in range(12)
    ]
    np.testing.assert_allclose(relative_imbalance(counts, second), imbalance)
    assert max(imbalance) < 0.04
    assert abs(int(second.sum()) - 300) <= 20
    assert np.array_equal(second, balanced_halves(counts))
    assert not np.array_equal(second, balanced_halves(counts, seed=1))
    assert len(balanced_halves(np.zeros((0, 3), int))) == 0


def test_counts_of_classes(ilsvrc):
    train, _ = read_annotations(ilsvrc, "train")
    assert class_counts(train).tolist() == [[1, 1, 0], [1, 0, 0], [0, 1, 0]]


def test_evaluated_as_the_kit_does(ilsvrc, tmp_path, capsys):
    """v_1's car found, v_2's ant missed: mAP 1/2; with v_2's ants blacklisted 1."""
    val, _ = read_annotations(ilsvrc, "val")
    found = DetectionTable(np.array([0]), val.boxes[:1], np.array([0.9]), np.array([2]))
    write_coco_results(tmp_path / "found.json", val, found)
    arguments = ["--results", str(tmp_path / "found.json"), "--data", str(ilsvrc), "--split", "val"]
    eval_det.main(arguments)
    assert "0.500" in capsys.readouterr().out
    blacklist = ilsvrc / "devkit" / "data" / "ILSVRC2015_det_validation_blacklist.txt"
    blacklist.write_text(f"2 {ANT}\n3 {BEE}\n")
    eval_det.main(arguments)
    printed = capsys.readouterr().out
    assert "1.000" in printed
    assert "2 pairs of image and class left out" in printed
    eval_det.main([*arguments, "--no-blacklist"])
    assert "0.500" in capsys.readouterr().out
    assert imagenet_det.read_blacklist(ilsvrc, val) == {(1, 0), (2, 1)}
    for malformed in ("2\n", f"{ANT} 2\n"):
        blacklist.write_text(malformed)
        with pytest.raises(DataError, match=r"blacklist\.txt: every line should be `number wnid`"):
            imagenet_det.read_blacklist(ilsvrc, val)
