"""Strict YAML, each value with the file and line that it was written in.

Scalars follow YAML 1.2: `1e-4` is a number, `no` and `off` are words, `08` is eight. Duplicate keys are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from detres.errors import ConfigError, nearest

KeyPath = tuple[str | int, ...]

MOST_ALIASED = 10_000  # values that aliases may add to a text
TOO_DEEP = "lists and mappings are nested too deep"

_RESOLVERS: dict[str, tuple[str, str]] = {
    # tag -> what is written so, the first characters it can have
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


def _resolver_table() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {"": []}
    for tag, (pattern, first) in _RESOLVERS.items():
        for character in [*first, ""] if tag == "null" else first:
            entry = (f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})\Z"))
            table.setdefault(character, []).append(entry)
    return table


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar = _resolver_table()  # type: ignore[misc]  # an instance variable in the stubs


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either kind of YAML would take for more than a word."""

    yaml_implicit_resolvers: ClassVar = {  # type: ignore[misc]  # an instance variable in the stubs
        first: [
            *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
            *_Loader.yaml_implicit_resolvers.get(first, []),
        ]
        for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
    }


@dataclass(frozen=True)
class Document:
    """A mapping read from YAML.

    Attributes:
        values: Plain dicts, lists and scalars.
        places: Where each key (and list item) was written, `file:line`.
    """

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)

    def place(self, path: KeyPath) -> str:
        """Where `path`, or what it stands in, was written; empty where nobody wrote it."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return ""

    def merge(self, over: Document) -> Document:
        """This document with `over` on top: mappings merge, everything else replaces."""
        places = dict(self.places)
        values = _merge(self.values, over.values, (), places)
        return Document(values, {**places, **over.places})


def read_document(path: Path) -> Document:
    """A YAML file on top of its `base`, which may have a base itself.

    Raises:
        ConfigError: Missing or malformed file, duplicate key, bases that form a circle.
    """
    layers = [_read_file(path)]
    chain: dict[Path, str] = {}  # each file that names a base -> where it does
    while (base := layers[-1].values.pop("base", None)) is not None:
        where = layers[-1].places.pop(("base",))
        if not isinstance(base, str):
            raise ConfigError(f"{where}: base: should be the name of one file, not {base!r}")
        chain[path.resolve()] = where
        path = path.parent / base
        if path.resolve() in chain:
            links = " -> ".join([*chain.values(), str(path)])
            raise ConfigError(f"{where}: base: the bases form a circle: {links}")
        layers.append(_read_file(path, asked_at=f"{where}: base: "))
    document = layers.pop()
    while layers:
        document = document.merge(layers.pop())
    return document


def override_document(override: str) -> Document:
    """The document that `a.b=value` stands for.

    Raises:
        ConfigError: No `=`, an empty key, or a value that is not YAML.
    """
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    where = f"--set {override:.200}"
    if not equals or not all(names):
        raise ConfigError(f"{where}: should be key.path=value, such as train.lr=0.01")
    inner = _parse(text, where, lines=False)
    values = inner.values[""]
    for name in reversed(names):
        values = {name: values}
    places: dict[KeyPath, str] = {tuple(names[:depth]): where for depth in range(1, len(names) + 1)}
    return Document(values, {**places, **{(*names, *path[1:]): where for path in inner.places}})


def dump(values: dict[str, Any]) -> str:
    """`values` as YAML that reads back the same."""
    return yaml.dump(
        values, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=110
    )


def _read_file(path: Path, asked_at: str = "") -> Document:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        beside = [other.name for other in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise ConfigError(f"{asked_at}no such file: {path}{nearest(path.name, beside)}") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{asked_at}cannot read {path}: {reason}") from error
    document = _parse(text, str(path), lines=True)
    values = document.values[""] if document.values[""] is not None else {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}:1: a configuration is a mapping of keys, not {values!r:.60}")
    places = {key_path[1:]: place for key_path, place in document.places.items()}
    return Document(values, {**places, (): str(path)})


def _parse(text: str, source: str, *, lines: bool) -> Document:
    """The value of `text` under the key ``""``, with places."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if lines and mark else source
        raise ConfigError(f"{where}: malformed YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: malformed YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: malformed YAML: {TOO_DEEP}") from error
    reader = _NodeReader(source, lines)
    if has_too_many_aliases(node):
        raise ConfigError(f"{source}: aliases make more than {MOST_ALIASED:,} values: write them out")
    value = None if node is None else reader.value(node, ("",))
    return Document({"": value}, {("",): source, **reader.places})


def has_too_many_aliases(node: yaml.Node | None) -> bool:
    """Whether aliases, which may stand in each other, make a small text stand for a huge number of values."""
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = 1  # what stands inside itself counts once
            children = node.value if isinstance(node, yaml.CollectionNode) else []
            pairs = (child if isinstance(child, tuple) else (child,) for child in children)
            sizes[id(node)] += sum(size(child) for pair in pairs for child in pair)
        return sizes[id(node)]

    return size(node) - len(sizes) > MOST_ALIASED


class _NodeReader:
    """One pass over the nodes of a text: values out, places noted."""

    def __init__(self, source: str, lines: bool):
        self.source = source
        self.lines = lines
        self.places: dict[KeyPath, str] = {}
        self._open: list[yaml.Node] = []

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        where = self._where(node)
        self.places.setdefault(path, where)
        if any(node is outer for outer in self._open):
            raise ConfigError(f"{where}: an alias stands inside what it names")
        self._open.append(node)
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, (*path, number)) for number, item in enumerate(node.value)]
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            return _scalar(node, where)
        finally:
            self._open.pop()

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            where, name = self._where(key_node), key_node.value
            if not isinstance(name, str):
                raise ConfigError(f"{where}: a key should be one word")
            if name in mapping:
                first = f" (first in line {first_lines[name]})" if self.lines else ""
                raise ConfigError(f"{where}: duplicate key '{name}'{first}")
            first_lines[name] = key_node.start_mark.line + 1
            self.places[(*path, name)] = where
            mapping[name] = self.value(value_node, (*path, name))
        return mapping

    def _where(self, node: yaml.Node) -> str:
        return f"{self.source}:{node.start_mark.line + 1}" if self.lines else self.source


def _scalar(node: yaml.Node, where: str) -> Any:
    text: str = node.value
    tag = node.tag.removeprefix("tag:yaml.org,2002:")
    try:
        if tag == "str":
            return text
        if tag == "null":
            return None
        if tag == "bool":
            return {"true": True, "false": False}[text.lower()]
        if tag == "int":
            return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
        if tag == "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{where}: {text!r:.80} is not a YAML {tag}") from error
    raise ConfigError(f"{where}: the tag '{node.tag}' is not allowed here")


def _merge(
    below: dict[str, Any], over: dict[str, Any], path: KeyPath, places: dict[KeyPath, str]
) -> dict[str, Any]:
    """Merge two mappings and forget in `places` where replaced values stood."""
    result = dict(below)
    for name, value in over.items():
        if isinstance(value, dict) and isinstance(below.get(name), dict):
            result[name] = _merge(below[name], value, (*path, name), places)
        else:
            replaced = (*path, name)
            for stale in [old for old in places if old[: len(replaced)] == replaced]:
                del places[stale]
            result[name] = value
    return result
