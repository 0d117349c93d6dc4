"""Agreement of class names: order does not matter, a difference names both sides."""

from __future__ import annotations

import pytest

from detres.data.class_names import check_class_names, class_places
from detres.errors import DataError, WeightsError


def test_the_same_names_in_any_order_agree():
    check_class_names(("b", "a"), ("a", "b"), source="s")
    check_class_names((), (), source="s")


@pytest.mark.parametrize(
    ("names", "details"),
    [
        (("dog",), "missing there: cat"),
        (("cat", "dog", "eel"), "unknown: eel"),
        (("cats", "dog"), r"missing there: cat; unknown: cats.*did you mean 'cat'"),
    ],
)
def test_a_difference_names_both_sides(names, details):
    both = rf"class names differ: weights has 2 \(cat, dog\), data has {len(names)} \({', '.join(names)}\); "
    with pytest.raises(DataError, match=both + details):
        check_class_names(names, ("cat", "dog"), source="data", expected_source="weights")


def test_a_part_of_the_names_where_it_is_allowed():
    check_class_names(("dog",), ("cat", "dog"), source="s", subset=True)
    with pytest.raises(WeightsError, match="unknown: eel"):
        check_class_names(("eel",), ("cat", "dog"), source="s", subset=True, error=WeightsError)


def test_places():
    assert class_places(("c", "a"), ("a", "b", "c")) == [2, 0]
