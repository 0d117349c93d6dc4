"""Errors in the user's input, and errors that end a program with a status of their own.

They are raised where the input is read (configuration, data, weights, command line) and caught once, in
`detres.cli.common`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """The user's input is wrong: one line that says what, where, and what would be right (exit status 2)."""

    exit_status = 2


class ConfigError(UserError):
    """A configuration file, key or `--set` is wrong."""


class DataError(UserError):
    """A data set, annotation or image is wrong."""


class WeightsError(UserError):
    """A weights file cannot be used for the task."""


class DivergedError(Exception):
    """Training produced a loss that is not finite (exit status 3)."""

    exit_status = 3


def nearest(name: str, candidates: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the candidate closest to `name`, or an empty string if none is close."""
    matches = difflib.get_close_matches(str(name), list(candidates), n=1, cutoff=0.6)
    return f" (did you mean '{matches[0]}'?)" if matches else ""


def listed(names: Iterable[object], limit: int = 10) -> str:
    """Names joined by commas, cut after `limit` with the number of those left out."""
    names = [str(name) for name in names]
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
