"""From a bare Python to a trained detector on drawn pictures: `python3 tools/quickstart.py`."""

import environment

if __name__ == "__main__":
    arguments = environment.ensure()
    from detres.cli import main

    main(["quickstart", *arguments])
