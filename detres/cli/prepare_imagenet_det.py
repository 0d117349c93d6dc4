"""`detres prepare-imagenet-det`: verifies ImageNet DET, and writes the lists val1 and val2.

The data needs a registration with image-net.org, so it is not downloaded.
"""

from __future__ import annotations

from detres.cli.common import add_common_arguments, tool_parser, write_report
from detres.errors import DataError, UserError

EXAMPLE = """
python3 datasets/prepare_imagenet_det.py --data /data/ILSVRC
"""
VAL_IMAGES, CLASSES = 20_121, 200


def main(argv: list[str]) -> None:
    """Run the tool.

    Raises:
        UserError: The data is missing or incomplete, or other lists of these names exist.
    """
    parser = tool_parser(
        "prepare-imagenet-det",
        "Verify ImageNet DET and split its val into val1 and val2, balanced by class.",
        EXAMPLE,
    )
    parser.add_argument(
        "--val-only", action="store_true", help="do not read the training images (they take minutes)"
    )
    add_common_arguments(parser, "data", "json", "quiet")
    options = parser.parse_args(argv)

    import numpy as np

    from detres.data.formats import read_annotations, resolve_directory
    from detres.data.prepare.imagenet_det import balanced_halves, class_counts, relative_imbalance
    from detres.data.readers.imagenet_det import CLASS_MAP, read_classes, splits, write_list
    from detres.data.sources import log_reports

    root = resolve_directory(options.data or "ILSVRC")
    named = len(read_classes(root))
    if named != CLASSES:
        raise DataError(f"{root}: {CLASS_MAP} names {named} classes, it should name {CLASSES}")
    val, report = read_annotations(root, "val", format="imagenet_det")
    log_reports([report])
    if len(val) != VAL_IMAGES:
        raise DataError(f"{root}: split 'val' has {len(val)} pictures, it should have {VAL_IMAGES}")
    print(f"{root} val: {len(val)} pictures, {len(val.boxes)} objects: complete")
    counts = class_counts(val)
    second = balanced_halves(counts)
    existing = splits(root)
    halves = {"val1": ~second, "val2": second}
    lists = {
        name: [val.image_ids[index] for index in np.flatnonzero(chosen).tolist()]
        for name, chosen in halves.items()
    }
    for name, ids in lists.items():  # both are checked before either is written
        if name in existing:
            _refuse_another(root, name, ids)
    written: dict[str, object] = {}
    for name, chosen in halves.items():
        ids = lists[name]
        path = write_list(root, name, ids)
        written[name] = len(ids)
        print(f"{path}: {len(ids)} pictures, {int(counts[chosen].sum())} objects")
    imbalance = relative_imbalance(counts, second)
    print(
        f"imbalance of the classes between the two: {imbalance.max():.1%} at most, median {np.median(imbalance):.1%}"
    )
    if not options.val_only:
        train, report = read_annotations(root, "train", format="imagenet_det")
        log_reports([report])
        print(f"{root} train: {len(train)} pictures, {len(train.boxes)} objects: complete")
        written["train"] = len(train)
    figures = {"largest_imbalance": float(imbalance.max()), "median_imbalance": float(np.median(imbalance))}
    write_report(options.json, {"images": written, **figures})


def _refuse_another(root, name: str, ids: list[str]) -> None:
    """Refuse to replace a list of other images."""
    from detres.data.readers.imagenet_det import read_list

    path, image_ids = read_list(root, name)
    if set(image_ids) != set(ids):
        raise UserError(
            f"{path} exists and lists other images: move it away, so that this tool can write its list"
        )
