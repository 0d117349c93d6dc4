"""Measure speed beside torchvision's Faster R-CNN; for a checkout only."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
from benchmarks import command
from detres.cli.common import run
from detres.devices import tune_malloc

if __name__ == "__main__":
    tune_malloc()
    run(command.main)
