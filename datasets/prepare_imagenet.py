"""Unpacks or verifies ImageNet (ILSVRC2012): `detres prepare imagenet`, without installing detres."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
from detres.cli import main  # noqa: E402

if __name__ == "__main__":
    main(["prepare", "imagenet", *sys.argv[1:]])
