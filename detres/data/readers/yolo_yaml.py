"""What YOLO's data.yaml says: its splits, and the names of the classes as they are written there.

YAML 1.1 takes `no` for false, `010` for eight and `1.10` for 1.1; here they are what a class is called.
"""

from __future__ import annotations

from pathlib import Path

from detres.data.files import read_text, visible
from detres.errors import DataError, listed


def find(directory: Path) -> dict:
    """The mapping of the folder's data.yaml (any name, with `names`), empty where there is none.

    Raises:
        DataError: A YAML file of the folder is malformed or not UTF-8.
    """
    paths = visible([*directory.glob("*.yaml"), *directory.glob("*.yml")])
    for path in sorted(paths, key=lambda p: (p.stem != "data", p)):
        content = read(path)
        if "names" in content:
            return content
    return {}


def read(path: Path) -> dict:
    """The mapping of one data.yaml, its `names` as they are written; empty where it is none.

    Raises:
        DataError: It is malformed (with the line) or not UTF-8.
    """
    import yaml

    text = read_text(path)
    try:
        content = yaml.safe_load(text)
        if not isinstance(content, dict):
            return {}
        if content.get("names") is not None:
            content["names"] = yaml.load(text, Loader=yaml.BaseLoader).get("names", content["names"])
    except (yaml.YAMLError, ValueError) as error:  # the latter of a date that there is not
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", error)).split())
        raise DataError(f"{path}{line}: malformed YAML: {problem}") from error
    return content


def class_names(directory: Path) -> list[str] | None:
    """The names that the folder's data.yaml lists or numbers; None where it has none.

    Raises:
        DataError: They are neither listed nor numbered from 0 on, or one is no name.
    """
    names, where = find(directory).get("names"), f"data.yaml of {directory}"
    if names is None:
        return None
    if isinstance(names, dict):
        names = _by_number(names, where)
    if not isinstance(names, list):
        wanted = "a list of names or a mapping of numbers to names"
        raise DataError(f"{where}: names: should be {wanted}, not '{names}'")
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: names: number {number} is {name!r}, not a name")
    return names


def _by_number(names: dict, where: str) -> list:
    wrong = next((number for number in names if not str(number).isdecimal()), None)
    if wrong is not None:
        raise DataError(f"{where}: names: '{wrong}' is not a whole number from 0 on, as in `0: cat`")
    numbers = sorted(int(number) for number in names)
    if numbers != list(range(len(numbers))):
        raise DataError(f"{where}: names are numbered {listed(numbers)}, not 0 to {len(numbers) - 1}")
    return [names[number] for number in sorted(names, key=int)]
