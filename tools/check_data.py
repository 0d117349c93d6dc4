"""What is in a data set and what is wrong with it: `detres check-data`, without installing detres."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
from detres.cli import main

if __name__ == "__main__":
    main(["check-data", *sys.argv[1:]])
