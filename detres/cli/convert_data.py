"""`detres convert-data`: writes a data set for detection, or drawn images (`shapes`), as COCO, VOC or YOLO."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detres.cli.common import add_common_arguments, tool_parser
from detres.errors import UserError

if TYPE_CHECKING:
    from detres.data.records import Annotations

EXAMPLE = """
detres convert-data --data bccd --to coco --out datasets/bccd_coco
detres convert-data --data shapes:200 --split test --to yolo --out datasets/drawn
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the tool.

    Raises:
        UserError: The data set has errors, splits disagree on class names, `--out` holds something, or is read itself.
    """
    from detres.data.format_names import FORMAT_NAMES, WRITABLE

    parser = tool_parser("convert-data", "Write a data set for detection in another format.", EXAMPLE)
    add_common_arguments(parser, "data", "quiet")
    parser.add_argument("--split", metavar="NAME", help="one split (default: all)")
    parser.add_argument(
        "--format", choices=FORMAT_NAMES, help="what to read, where the folder holds several formats"
    )
    parser.add_argument("--to", choices=WRITABLE, required=True, help="what to write")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write it")
    parser.add_argument("--images", choices=("copy", "link", "none"), default="copy", help="(default: copy)")
    parser.add_argument(
        "--overwrite", action="store_true", help="write into --out even if it holds something"
    )
    options = parser.parse_args(argv)
    if not options.data:
        parser.error("--data DIR is needed")
    if options.out.is_dir() and any(options.out.iterdir()) and not options.overwrite:
        raise UserError(f"--out {options.out} is not empty: choose another folder or add --overwrite")

    from detres.data.formats import resolve_directory
    from detres.data.placement import plan_images
    from detres.data.writers import WRITERS

    source = resolve_directory(options.data)
    parts = _read(options, source)
    for name, part in parts.items():
        plan_images(part, options.out, name, options.to, options.images, source)
    for name, part in parts.items():
        report = WRITERS[options.to](part, options.out, name, images=options.images)
        print(f"{name}: {len(part)} pictures, {len(part.boxes)} objects -> {options.out} ({options.to})")
        for kind, count in report.counts().items():
            print(f"  {kind}: {count}")


def _read(options: argparse.Namespace, directory: Path) -> dict[str, Annotations]:
    """The splits to write, with one class list; what reading dropped is printed on standard error."""
    from detres.data.formats import list_splits, read_annotations, select_classes

    parts: dict[str, Annotations] = {}
    for split in [options.split] if options.split else list_splits(directory, format=options.format):
        annotations, report = read_annotations(directory, split, format=options.format)
        for kind, count in report.counts().items():
            print(f"{split}: {kind}: {count} (check-data names them)", file=sys.stderr)
        first = next(iter(parts.values()), annotations)
        parts[split.replace("/", "_")] = select_classes(annotations, first.class_names)
    return parts
