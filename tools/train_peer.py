"""Train torchvision's composition on a configuration of ours; for a checkout only."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
from benchmarks import train_peer
from detres.cli.common import run
from detres.devices import tune_malloc

if __name__ == "__main__":
    tune_malloc()
    run(train_peer.main)
