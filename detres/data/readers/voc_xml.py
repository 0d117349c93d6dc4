"""Parses one Pascal VOC XML: the image's size, and the name, corners, flag and line of each object.

Declarations of document types and entities are refused, because an entity may expand without end.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

from detres.data.readers.common import LONGEST_SIDE
from detres.errors import DataError

CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocAnnotation:
    """The content of one XML: the image's size, and of each object its name, corners, `difficult` and line."""

    height: int
    width: int
    names: list[str]
    corners: list[list[float]]
    difficult: list[bool]
    lines: list[int]


def parse_voc_xml(path: Path) -> VocAnnotation:
    """Parse one VOC XML; only direct children of `object` are read, because a `part` has its own name and box.

    Raises:
        DataError: Not XML (with the line), an unknown encoding, a declaration of a document type or entity, or an
            object without name or box.
    """
    root = _tree(path)
    objects = root.findall("object")
    try:
        return VocAnnotation(
            height=_size(root.findtext("size/height")),
            width=_size(root.findtext("size/width")),
            names=[_text(entry, "name") for entry in objects],
            corners=[[float(_text(entry, f"bndbox/{corner}")) for corner in CORNERS] for entry in objects],
            difficult=[
                (entry.findtext("difficult") or "0").strip() in ("1", "true", "True") for entry in objects
            ],
            lines=[int(entry.attrib["line"]) for entry in objects],
        )
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path}: {error}") from error


def _tree(path: Path) -> ElementTree.Element:
    """The XML as a tree; each element has its line in the attribute `line`."""
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    encoding = None

    def declare(_version: str, name: str | None, _standalone: int) -> None:
        nonlocal encoding
        encoding = name

    def start(tag: str, attributes: dict[str, str]) -> None:
        builder.start(tag, {**attributes, "line": str(parser.CurrentLineNumber)})

    def refuse(*_: object) -> None:
        raise DataError(
            f"{path}: line {parser.CurrentLineNumber}: declares a document type; entities are not read"
        )

    parser.XmlDeclHandler = declare
    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except expat.ExpatError as error:
        raise DataError(f"{path}: line {error.lineno}: {expat.ErrorString(error.code)}") from error
    except (ValueError, LookupError) as error:  # a multi-byte or unknown encoding
        raise DataError(f"{path}: encoding '{encoding}' is not read; save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return builder.close()


def _text(element: ElementTree.Element, tag: str) -> str:
    text = (element.findtext(tag) or "").strip()
    if not text:
        raise ValueError(f"line {element.attrib['line']}: object without <{tag}>")
    return text


def _size(text: str | None) -> int:
    side = float(text) if text and text.strip() else 0.0
    if abs(side) > LONGEST_SIDE:
        raise ValueError(f"a size of {side:g} is no number of pixels")
    return int(side)
