"""Reads YOLO's data.yaml: its splits, and the class names as they are written.

YAML 1.1 reads `no` as false, `010` as eight and `1.10` as 1.1. As class names they stay text.
"""

from __future__ import annotations

import re
from pathlib import Path

from detres.data.files import read_text, visible
from detres.errors import DataError, listed
from detres.strict_yaml import MOST_ALIASED, TOO_DEEP, has_too_many_aliases

NAMES_KEY = re.compile(r"""^(\{.*)?["']?names["']?\s*:""", re.MULTILINE)


def find_data_yaml(directory: Path) -> Path | None:
    """The folder's YAML file with the key `names`, `data.yaml` first; None where there is none.

    Raises:
        DataError: A YAML file of the folder is not UTF-8.
    """
    paths = visible([*directory.glob("*.yaml"), *directory.glob("*.yml")])
    ordered = sorted(paths, key=lambda path: (path.stem != "data", path))
    return next((path for path in ordered if NAMES_KEY.search(read_text(path))), None)


def read_data_yaml(path: Path | None) -> dict:
    """The mapping of a data.yaml, its `names` as a list (none where it has none); empty for None.

    Raises:
        DataError: It is malformed (with the line) or not UTF-8; or its names are neither a list nor numbered from 0, or
            one is no name.
    """
    import yaml

    if path is None:
        return {}
    text = read_text(path)
    try:
        if "*" in text and has_too_many_aliases(yaml.compose(text, Loader=yaml.SafeLoader)):
            raise DataError(f"{path}: aliases make more than {MOST_ALIASED:,} values: write them out")
        content = yaml.safe_load(text)
        if not isinstance(content, dict):
            return {}
        names = content.get("names")
        if names is not None:
            names = yaml.load(text, Loader=yaml.BaseLoader).get("names", names)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", error)).split())
        raise DataError(f"{path}{line}: malformed YAML: {problem}") from error
    except RecursionError as error:
        raise DataError(f"{path}: malformed YAML: {TOO_DEEP}") from error
    return content if names is None else {**content, "names": _list_of_names(names, path)}


def _list_of_names(names: object, path: Path) -> list[str]:
    if isinstance(names, dict):
        names = _by_number(names, path)
    if not isinstance(names, list):
        wanted = "a list of names or a mapping of numbers to names"
        raise DataError(f"{path}: names: should be {wanted}, not '{names!s:.80}'")
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise DataError(f"{path}: names: number {number} is {name!r:.80}, not a name")
    return names


def _by_number(names: dict, path: Path) -> list:
    wrong = next((number for number in names if not str(number).isdecimal()), None)
    if wrong is not None:
        raise DataError(f"{path}: names: '{wrong}' is not a whole number from 0 on, as in `0: cat`")
    numbers = sorted(int(number) for number in names)
    if numbers != list(range(len(numbers))):
        raise DataError(f"{path}: names are numbered {listed(numbers)}, not 0 to {len(numbers) - 1}")
    return [names[number] for number in sorted(names, key=int)]
