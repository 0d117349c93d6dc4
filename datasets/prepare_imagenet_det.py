"""Verifies ImageNet DET and writes val1 and val2: `detres prepare-imagenet-det`, without installing detres."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
from detres.cli import main  # noqa: E402

if __name__ == "__main__":
    main(["prepare-imagenet-det", *sys.argv[1:]])
