"""Strict configuration: YAML with its `base` and `--set` into frozen models; shipped recipes by name.

A fault is one line with file, line, key path and the nearest valid name. The models themselves stand beside
what they configure; `detres.strict_yaml` reads the files.
"""

from __future__ import annotations

import os
import types
import typing
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin

import pydantic
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, core_schema

from detres.errors import ConfigError, listed, nearest
from detres.strict_yaml import Document, KeyPath, dump, override_document, read_document


class Section(pydantic.BaseModel):
    """A frozen part of a configuration; unknown keys and wrong types are refused.

    Strict but for two things that YAML cannot say otherwise: an int is taken for a float, a list for a tuple.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _lists_for_tuples(cls, value: object, info: pydantic.ValidationInfo) -> object:
        return _convert_lists(value, cls.model_fields[str(info.field_name)].annotation)


S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Length:
    """How long something lasts, as people write it: `12 epochs`, `240000 iterations` or, of a whole, `50 %`."""

    count: int
    unit: Literal["epochs", "iterations", "%"]

    @staticmethod
    def parse(text: str) -> Length:
        """The length that `text` says.

        Raises:
            ConfigError: Anything but a whole number of at least 1 and `epochs`, `iterations` or `%` (at most 100).
        """
        count, _, unit = text.strip().partition(" ")
        units: dict[str, Literal["epochs", "iterations", "%"]] = {
            "epoch": "epochs",
            "iteration": "iterations",
            "%": "%",
        }
        known = units.get(unit.strip().removesuffix("s"))
        whole = count.isascii() and count.isdigit() and int(count) >= 1
        if known is None or not whole or (known == "%" and int(count) > 100):
            raise ConfigError(
                f"{text!r} is not a length; write '12 epochs' or '240000 iterations' (of a run also '50 %')"
            )
        return Length(int(count), known)

    def __str__(self) -> str:
        return f"{self.count} {self.unit}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validate, serialization=core_schema.to_string_ser_schema(when_used="always")
        )

    @staticmethod
    def _validate(value: object) -> Length:
        if isinstance(value, Length):
            return value
        if not isinstance(value, str):
            raise ValueError("should be a length such as '12 epochs' or '240000 iterations'")
        try:
            return Length.parse(value)
        except ConfigError as error:
            raise ValueError(str(error)) from error


def load_config(model: type[S], cfg: str | Path | None, overrides: Sequence[str] = ()) -> S:
    """The configuration that a file (with its `base`) and the `--set` overrides describe.

    Args:
        model: What the whole file is to become.
        cfg: A YAML file or a shipped recipe's name (`find_recipe`), or None for the defaults. Its
            `base: other.yaml` is relative to it and may have a base itself; mappings merge, lists replace.
        overrides: `a.b=value`, each value read as YAML, in order of rising precedence.

    Raises:
        ConfigError: With file and line (or the override), key path, and the nearest valid name.
    """
    document = read_document(find_recipe(cfg)) if cfg is not None else Document()
    for override in overrides:
        document = document.merge(override_document(override))
    try:
        return model.model_validate(document.values)
    except pydantic.ValidationError as error:
        faults = sorted(error.errors(include_url=False), key=lambda fault: fault["type"] != "extra_forbidden")
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ConfigError(_explain(faults[0], model, document) + more) from error


def find_recipe(cfg: str | Path) -> Path:
    """The file that `--cfg` names: an existing path, else a shipped recipe such as `finetune` or `voc/r101_c4`.

    Raises:
        ConfigError: Neither; with the nearest name and the folder whose files are the names.
    """
    path, folder = Path(cfg), recipes_folder()
    recipes = {file.relative_to(folder).with_suffix("").as_posix(): file for file in folder.rglob("*.yaml")}
    name = path.as_posix().removesuffix(".yaml")
    if name in recipes and not os.path.isfile(cfg):
        return recipes[name]
    if os.path.exists(cfg):
        return path
    beside = path.parent.glob("*.y*ml") if path.parent.is_dir() else ()
    close = nearest(path.name, (other.name for other in beside)) or nearest(name, recipes)
    raise ConfigError(f"no such file or recipe: {cfg}{close}; recipes are named as the files in {folder}")


def recipes_folder() -> Path:
    """The folder of the shipped recipes: `detres.recipes` of an installed wheel, `configs/` of a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "configs"


def differences(config: Section) -> dict[str, object]:
    """Dotted key -> value (as YAML has it) of all that differs from the defaults; required keys always do."""
    return dict(_differences(config, None))


def to_yaml(config: Section) -> str:
    """The complete configuration as YAML, from which `load_config` makes it again."""
    return dump(config.model_dump(mode="json"))


def describe_keys(model: type[Section]) -> list[tuple[str, str, str, str]]:
    """Key path, type, default and description of every key, in order (for the table in the docs)."""
    return list(_describe_section(model, ""))


def _convert_lists(value: object, annotation: Any) -> object:
    """`value` with lists turned into tuples wherever `annotation` asks for a tuple."""
    arguments = get_args(annotation)
    if not isinstance(value, (list, tuple)):
        return value
    items = cast("Sequence[object]", value)
    if get_origin(annotation) in (typing.Union, types.UnionType):
        tuples = [choice for choice in arguments if get_origin(choice) is tuple]
        return _convert_lists(items, tuples[0]) if tuples else items
    if get_origin(annotation) is not tuple:
        return items
    kinds = [arguments[0]] * len(items) if arguments[-1] is Ellipsis else [*arguments, *[None] * len(items)]
    return tuple(_convert_lists(item, kind) for item, kind in zip(items, kinds, strict=False))


def _explain(fault: ErrorDetails, model: type[Section], document: Document) -> str:
    """One line for a pydantic error: where, key path, what is wrong, what would be right."""
    path = _key_path(fault, document.values)
    where = f"{document.place(path)}: " if document.place(path) else ""
    name = str(path[-1]) if path else ""
    if fault["type"] == "extra_forbidden":
        return f"{where}unknown key '{_dotted_path(path)}'{_valid_names(model, path)}"
    if fault["type"] == "missing":
        return f"{where}key '{_dotted_path(path)}' is missing{_description(model, path)}"
    message = (
        fault["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("a valid tuple", "a list")
    )
    found = fault["input"]
    if fault["type"] == "literal_error":
        choices = fault.get("ctx", {}).get("expected", "")
        message += nearest(str(found), choices.replace(" or ", ", ").replace("'", "").split(", "))
    elif fault["type"] == "bool_type":
        message += " (true or false)"
    elif fault["type"] in ("model_type", "model_attributes_type", "dict_type"):
        message = f"should be a mapping of keys{_description(model, path)}"
    if fault["type"] != "value_error":
        message += f", not {_shorten(found)}"
    return f"{where}{_dotted_path(path)}: {message}" if name else f"{where}{message}"


def _key_path(fault: ErrorDetails, values: object) -> KeyPath:
    """The error's location less the names of union members that pydantic puts into it."""
    path: list[str | int] = []
    for part in fault["loc"]:
        inside = isinstance(values, dict) and part in values
        within = (
            isinstance(values, (list, tuple)) and isinstance(part, int) and part < len(cast(Sized, values))
        )
        if not (inside or within):
            return (*path, part) if fault["type"] == "missing" else tuple(path)
        path.append(part)
        values = values[part]  # type: ignore[index]  # as checked above
    return tuple(path)


def _valid_names(model: type[Section], path: KeyPath) -> str:
    """The name that was probably meant, beside the key or elsewhere; else all that are known beside it."""
    owner = _section_at(model, path[:-1])
    beside = list(owner.model_fields) if owner else []
    close = nearest(str(path[-1]), beside)
    if close:
        return close
    elsewhere = {key.rsplit(".", 1)[-1]: key for key, *_ in describe_keys(model)}
    if str(path[-1]) in elsewhere:
        return f" (did you mean '{elsewhere[str(path[-1])]}'?)"
    return f"; known here: {listed(beside, 30)}" if beside else ""


def _section_at(model: type[Section], path: KeyPath) -> type[Section] | None:
    """The Section that the mapping at `path` is to become."""
    section: type[Section] | None = model
    for part in path:
        if isinstance(part, str):
            field = section.model_fields.get(part) if section else None
            section = _inner_section(field.annotation) if field else None
    return section


def _inner_section(annotation: Any) -> type[Section] | None:
    """The Section inside an annotation such as `Anchors`, `Anchors | None` or `tuple[Source, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(_inner_section, get_args(annotation))), None)


def _description(model: type[Section], path: KeyPath) -> str:
    owner = _section_at(model, path[:-1]) if path else None
    field = owner.model_fields.get(str(path[-1])) if owner else None
    return f" ({field.description})" if field and field.description else ""


def _differences(config: Section, reference: Section | None) -> Iterator[tuple[str, object]]:
    written = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        default = getattr(reference, name) if reference else field.get_default(call_default_factory=True)
        if type(value) is type(default) and isinstance(value, Section):
            yield from ((f"{name}.{key}", inner) for key, inner in _differences(value, default))
        elif value != default or type(value) is not type(default):
            yield name, written[name]


def _describe_section(model: type[Section], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for name, field in model.model_fields.items():
        annotation: Any = field.annotation
        inner = _inner_section(annotation)
        key = prefix + name
        if inner is None or inner is not annotation:
            yield key, _type_name(field), _default_text(field), field.description or ""
        if inner is not None:
            yield from _describe_section(inner, f"{key}." if inner is annotation else f"{key}[].")


def _type_name(field: FieldInfo) -> str:
    """The type as people read it: `float > 0`, `'a' or 'b'`, `tuple of int`."""
    return " ".join([_annotation_text(field.annotation), *_bounds(field.metadata)])


def _bounds(metadata: Iterable[Any]) -> list[str]:
    """`> 0` and the like of a field's metadata; a `Field` of `Annotated` has metadata of its own."""
    symbols = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    limits = [
        limit for item in metadata for limit in (item.metadata if isinstance(item, FieldInfo) else [item])
    ]
    return [
        f"{symbol} {getattr(limit, name)}"
        for limit in limits
        for name, symbol in symbols.items()
        if getattr(limit, name, None) is not None
    ]


def _annotation_text(annotation: Any) -> str:
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        return " ".join([_annotation_text(arguments[0]), *_bounds(arguments[1:])])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(
            "null" if choice is type(None) else _annotation_text(choice) for choice in arguments
        )
    if origin is Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if origin in (tuple, list):
        if len(set(arguments) - {Ellipsis}) == 1:
            number = "" if arguments[-1] is Ellipsis or origin is list else f"{len(arguments)} "
            return f"list of {number}{_annotation_text(arguments[0])}"
        return f"list of ({', '.join(map(_annotation_text, arguments))})"
    return "mapping" if origin is dict else getattr(annotation, "__name__", str(annotation))


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, cast("tuple[object, ...]", value))) + "]"
    return str(value)


def _dotted_path(path: KeyPath) -> str:
    """`data.train[0].dir`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _shorten(value: object) -> str:
    text = "null" if value is None else repr(value)
    if isinstance(value, tuple):
        text = repr(list(cast("tuple[object, ...]", value)))
    return text if len(text) <= 60 else text[:57] + "..."
