"""What refinement, voting, several scales and flip give: `detres eval-tta`, without installing detres."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
from detres.cli import main

if __name__ == "__main__":
    main(["eval-tta", *sys.argv[1:]])
