"""`detres check-data`: prints the contents of a data set, and every defect with its file and object.

The exit status is 2 if a defect would stop a training.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from detres.cli.common import add_common_arguments, tool_parser, write_report
from detres.errors import DataError

if TYPE_CHECKING:
    from detres.data.checks import CheckReport
    from detres.data.records import Defect

EXAMPLE = "python3 tools/check_data.py --data bccd --split train"
DEFAULT_LIMIT = 20


def main(argv: Sequence[str] | None = None) -> None:
    """Run the tool.

    Raises:
        DataError: The data set has errors (after the whole report).
    """
    from detres.data.format_names import FORMAT_NAMES

    parser = tool_parser("check-data", "Show the contents and defects of a data set for detection.", EXAMPLE)
    add_common_arguments(parser, "data", "json", "quiet")
    parser.add_argument("--split", metavar="NAME", help="one split (default: all)")
    parser.add_argument(
        "--format", choices=FORMAT_NAMES, help="what to read, where the folder holds several formats"
    )
    parser.add_argument(
        "--headers", action="store_true", help="read only the images' headers, which is faster but finds less"
    )
    parser.add_argument(
        "--all", action="store_true", help=f"show all defects, not only {DEFAULT_LIMIT} of a kind"
    )
    arguments = parser.parse_args(argv)
    if not arguments.data:
        parser.error("--data DIR is needed")

    from detres.data.checks import check_data_set
    from detres.data.formats import resolve_directory

    report = check_data_set(
        resolve_directory(arguments.data),
        arguments.split,
        format=arguments.format,
        pixels=not arguments.headers,
        quiet=arguments.quiet,
    )
    show(report, limit=None if arguments.all else DEFAULT_LIMIT)
    write_report(arguments.json, report.to_dict())
    if report.errors:
        kinds = ", ".join(
            f"{kind}: {count}" for kind, count in Counter(defect.kind for defect in report.errors).items()
        )
        raise DataError(f"{report.source} has errors that stop a training ({kinds})")


def show(report: CheckReport, limit: int | None = DEFAULT_LIMIT) -> None:
    """Print the report on standard output, at most `limit` defects of each kind."""
    from detres.console import table

    for name, split in report.splits.items():
        notes = [
            f"{count} {word}"
            for word, count in (("crowds", split.crowd), ("difficult", split.difficult))
            if count
        ]
        suffix = f" ({', '.join(notes)})" if notes else ""
        print(
            f"{name}: {split.images} pictures, {split.empty} without objects; {split.objects} objects{suffix}"
        )
        rows = [(label, entry.objects, entry.images) for label, entry in split.classes.items()]
        table("", ("class", "objects", "images"), rows)
        sizes = [(what, *(points or [None] * 5)) for what, points in split.sides.items()]
        table("", ("pixels", "least", "5 %", "median", "95 %", "most"), _round(sizes))
        total = max(split.objects, 1)
        shares = ", ".join(f"{count} {word} ({count / total:.0%})" for word, count in split.areas.items())
        print(f"objects by COCO's area: {shares}\n")
    _show_defects("errors (a training stops)", report.errors, limit)
    _show_defects("dropped, mended, or of no consequence", report.defects, limit)
    _show_groups("pictures with the same pixels", report.identical, report.across_splits, " = ", limit)
    _show_groups(
        "pictures that are nearly the same", report.near_identical, report.across_splits, " ~ ", limit
    )
    if report.across_splits:
        print("Keep the images of a group in one split: figures on copies of training images are too good.")
    if not (report.errors or report.defects or report.identical or report.near_identical):
        print("no defects")


def _show_groups(
    title: str, groups: list[list[str]], crossing: list[list[str]], sign: str, limit: int | None
) -> None:
    """Print groups of images, first those that cross splits, because they distort the figures."""
    if not groups:
        return
    print(f"{title}: {len(groups)} groups, {sum(group in crossing for group in groups)} across splits")
    for group in sorted(groups, key=crossing.__contains__, reverse=True)[:limit]:
        print(f"  {sign.join(group)}{'  (across splits)' if group in crossing else ''}")
    _show_rest(len(groups), limit)


def _show_defects(title: str, defects: list[Defect], limit: int | None) -> None:
    if not defects:
        return
    print(f"{title}:")
    by_kind: dict[str, list[Defect]] = defaultdict(list)
    for defect in defects:
        by_kind[defect.kind].append(defect)
    for kind, some in by_kind.items():
        print(f"  {kind}: {len(some)}")
        for defect in some[:limit]:
            print(f"    {defect.where}: {defect.what}")
        _show_rest(len(some), limit)
    print()


def _show_rest(count: int, limit: int | None) -> None:
    if limit is not None and count > limit:
        print(f"    ... and {count - limit} more (--all, --json)")


def _round(rows: list[tuple]) -> list[tuple]:
    return [tuple(round(value) if isinstance(value, float) else value for value in row) for row in rows]
