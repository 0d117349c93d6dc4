"""The set-up, then linter, type checker and tests: `python3 tools/test.py [--slow] [--coverage] [pytest arguments]`."""

import subprocess
import sys
import time

import environment


def main() -> int:
    """Run every step and return 0 if all pass."""
    measure = "--coverage" in sys.argv
    arguments = environment.ensure(("test", "coverage") if measure else ("test",))
    arguments = [argument for argument in arguments if argument != "--coverage"]
    python = [sys.executable, "-m"]
    steps = {
        "format": [*python, "ruff", "format", "--check", "."],
        "lint": [*python, "ruff", "check", "."],
        "types": [*python, "pyright", "--pythonpath", sys.executable],
        # One process a core, each test on one thread; `-n 0` among the arguments goes back to one process.
        "tests": [*python, "pytest", "-n", "auto", "--dist", "worksteal", *arguments],
    }
    if measure:  # in one process, because coverage does not see the others
        steps["tests"] = [*python, "coverage", "run", "-m", "pytest", *arguments]
        steps["coverage"] = [*python, "coverage", "report"]
    seconds: dict[str, float] = {}
    failed = []
    for name, command in steps.items():
        print(f"== {name}: {' '.join(command[1:])}", flush=True)
        if name == "tests":
            _summary(seconds, failed)
        started = time.monotonic()
        if subprocess.call(command, cwd=environment.ROOT) != 0:
            failed.append(name)
        seconds[name] = time.monotonic() - started
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def _summary(seconds: "dict[str, float]", failed: "list[str]") -> None:
    """One line for the steps before the tests, so that pytest's closing line is the last of the output."""
    results = (
        f"{name} {'FAILED' if name in failed else 'ok'} ({took:.1f} s)" for name, took in seconds.items()
    )
    print(", ".join(results), flush=True)


if __name__ == "__main__":
    sys.exit(main())
