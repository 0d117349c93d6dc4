"""Weights files of one network or of an ensemble: classes by name, in any order; one task."""

from __future__ import annotations

import pytest
from tiny_models import write_detector, write_tiny_classifier

from detres.errors import UserError, WeightsError
from detres.tasks.ensemble import class_order, read_ensemble


def test_classes_by_name():
    assert class_order(("c", "a", "b"), ("a", "b", "c"), "y", "x") == (1, 2, 0)
    for names, fault in (
        (("a", "d"), "x has 2 (a, b), y has 2 (a, d); missing there: b; unknown: d"),
        (("a",), "x has 2 (a, b), y has 1 (a); missing there: b"),
    ):
        with pytest.raises(WeightsError) as caught:
            class_order(names, ("a", "b"), "y", "x")
        assert str(caught.value) == f"class names differ: {fault}"


def test_files_in_the_order_given(tmp_path):
    first = write_detector(tmp_path / "a.safetensors", ("cat", "dog"))
    second = write_detector(tmp_path / "b.safetensors", ("dog", "cat"), seed=1)
    files = read_ensemble([first, second], "detection")
    assert [file.path for file in files] == [str(first), str(second)]
    assert [file.metadata.class_names for file in files] == [("cat", "dog"), ("dog", "cat")]
    assert not files[0].tensors["rpn.conv.weight"].equal(files[1].tensors["rpn.conv.weight"])


def test_files_that_make_no_ensemble(tmp_path):
    names = ("cat", "dog")
    detector = write_detector(tmp_path / "d.safetensors", names)
    classifier = write_tiny_classifier(tmp_path / "c.safetensors", names)
    other = write_detector(tmp_path / "o.safetensors", ("cat", "dogs"))
    for paths, task, message in (
        ([classifier], "detection", r"c\.safetensors: weights for classification, not for detection"),
        ([detector, classifier], None, r"c\.safetensors: weights for classification, not for detection"),
        ([classifier, detector], None, r"d\.safetensors: weights for detection, not for classification"),
        ([detector, other], None, r"missing there: dog; unknown: dogs \(did you mean 'dog'\?\)"),
        ([detector, tmp_path / "none.safetensors"], None, "no such weights file"),
        ([], None, "0 weights files"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            read_ensemble(paths, task)
        assert len(str(caught.value).splitlines()) == 1
