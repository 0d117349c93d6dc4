"""Tables and progress for people: truth is what should stand on the screen."""

from __future__ import annotations

import numpy as np
import pytest

from detres.console import progress, table


def rows(printed: str) -> list[list[str]]:
    """The cells of a table's lines, with the spaces that place them."""
    lines = [line.replace("┃", "│") for line in printed.splitlines() if line[:1] in "│┃"]
    return [[cell[1:-1] for cell in line.split("│")[1:-1]] for line in lines]


def test_numbers_stand_right_and_text_left(capsys):
    table(
        "Figures",
        ("figure", "value", "count", "text number", "why", "interval"),
        [
            ("AP", 0.5, 12, "1.0e-05", "", "0.100 to 0.200"),
            ("a long name", None, 3, "2", "no objects of this size", ""),
        ],
    )
    printed = capsys.readouterr().out
    assert printed.startswith("Figures")
    assert rows(printed) == [
        ["figure     ", "value", "count", "text number", "why                    ", "interval      "],
        ["AP         ", "0.500", "   12", "    1.0e-05", "                       ", "0.100 to 0.200"],
        ["a long name", "  n/a", "    3", "          2", "no objects of this size", "              "],
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(np.int64(3), "   3"), (True, "True"), (None, " n/a"), ("nine", "nine")],
)
def test_a_column_of_one_cell(value, expected, capsys):
    table("", ("name",), [(value,)])
    assert rows(capsys.readouterr().out)[1] == [expected]


def test_a_table_without_rows(capsys):
    table("Empty", ("class", "AP"), [])
    assert rows(capsys.readouterr().out) == [["class", "AP"]]


def test_progress_gives_every_item(capsys):
    assert list(progress(iter(range(5)), "counting", quiet=True)) == list(range(5))
    assert list(progress(range(5), "counting")) == list(range(5))
    assert capsys.readouterr().out == ""
