"""`detres prepare`: downloads a public data set, or verifies one that is there.

`datasets/prepare_<name>.py` are the same programs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detres.cli.common import add_common_arguments, tool_parser, write_report

EXAMPLE = """
detres prepare voc
detres prepare coco --years 2017 --data /data/coco
detres prepare imagenet --archives /downloads --out /data
"""
VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
COCO = "http://images.cocodataset.org"
BCCD = "https://github.com/Shenggan/BCCD_Dataset/archive/refs/heads/master.zip"
CIFAR10 = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
YEARS = {
    "voc": ("2007", "2012"),
    "coco": ("2017", "2014"),
    "bccd": ("all",),
    "cifar10": ("all",),
    "imagenet": ("2012",),
}
FOLDERS = {"voc": "", "coco": "coco", "bccd": "bccd", "cifar10": "", "imagenet": "imagenet"}
CLASSIFICATION = ("cifar10", "imagenet")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the tool.

    Raises:
        UserError: The data cannot be downloaded, or is incomplete.
    """
    parser = tool_parser("prepare", "Download a public data set, or verify one that is there.", EXAMPLE)
    parser.add_argument("name", choices=sorted(YEARS), help="which data set")
    parser.add_argument(
        "--years", nargs="+", metavar="YEAR", help="VOC: 2007 2012 (both); COCO: 2017 (default), 2014"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("datasets"), metavar="DIR", help="(default: datasets)"
    )
    parser.add_argument(
        "--archives",
        type=Path,
        metavar="DIR",
        help="ImageNet: folder of the three official archives (default: downloads in its folder)",
    )
    add_common_arguments(parser, "data", "json", "quiet")
    options = parser.parse_args(argv)
    years = options.years or (YEARS["voc"] if options.name == "voc" else YEARS[options.name][:1])
    unknown = [year for year in years if year not in YEARS[options.name]]
    if unknown:
        parser.error(f"--years {unknown[0]}: {options.name} has {', '.join(YEARS[options.name])}")

    from detres.data.formats import resolve_directory
    from detres.data.prepare.download import prepare
    from detres.data.prepare.imagenet import unpack_imagenet

    root = resolve_directory(options.data) if options.data else options.out / FOLDERS[options.name]
    counts: dict[str, dict[str, int]] = {}
    for year in years:
        part = _part(options.name, year, root)
        images = options.name in CLASSIFICATION
        if options.name == "imagenet" and not options.data:
            unpack_imagenet(root, options.archives or root / "downloads")
        counts[year] = prepare(part, root, download_allowed=not options.data, images=images)
        for split, count in counts[year].items():
            what = "classes" if images else "objects"
            print(f"{root / part.folder} {split}: {part.counts[split]} pictures, {count} {what}: complete")
    write_report(options.json, counts)


def _part(name: str, year: str, root: Path):
    """One year of a data set, for `detres.data.prepare.download`."""
    from detres.data.prepare.download import Archive, Part
    from detres.data.prepare.imagenet import COUNTS
    from detres.data.readers import cifar

    if name == "bccd":
        archives = (Archive(BCCD, inside="BCCD_Dataset-master/BCCD"),)
        return Part(archives, "", {"train": 205, "val": 87, "test": 72})
    if name == "cifar10":
        archives = (Archive(CIFAR10, "c58f30108f718f92721af3b95e74349a"),)
        exists = root.is_file() or cifar.find_folder(root) is not None or (root / "train").is_dir()
        folder = "" if exists else "cifar-10-batches-py"
        return Part(archives, folder, {"train": 50_000, "test": 10_000})
    if name == "imagenet":
        return Part((), "", dict(COUNTS))
    if name == "coco":
        counts = {
            "2017": {"train2017": 118_287, "val2017": 5_000},
            "2014": {"train2014": 82_783, "val2014": 40_504},
        }
        archives = tuple(Archive(f"{COCO}/zips/{split}.zip") for split in counts[year])
        return Part(
            (*archives, Archive(f"{COCO}/annotations/annotations_trainval{year}.zip")), "", counts[year]
        )
    inside_devkit = (root / f"VOC{year}").is_dir()
    folder = f"VOC{year}" if inside_devkit else f"VOCdevkit/VOC{year}"
    if year == "2007":
        archives = (
            Archive(f"{VOC}/voc2007/VOCtrainval_06-Nov-2007.tar", "c52e279531787c972589f7e41ab4ae64"),
            Archive(f"{VOC}/voc2007/VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f"),
        )
        return Part(archives, folder, {"trainval": 5_011, "test": 4_952})
    archives = (Archive(f"{VOC}/voc2012/VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd"),)
    return Part(archives, folder, {"trainval": 11_540})
