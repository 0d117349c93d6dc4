"""Agreement of class names: labels are places in one ordered list of names, whatever order a file has them in."""

from __future__ import annotations

from collections.abc import Sequence

from detres.errors import DataError, UserError, listed, nearest


def check_class_names(
    names: Sequence[str],
    expected: Sequence[str],
    *,
    source: str,
    expected_source: str = "the expected list",
    subset: bool = False,
    error: type[UserError] = DataError,
) -> None:
    """Refuse class names that are not the expected ones; their order may differ.

    Args:
        names: Of a data set or of weights.
        expected: Those that they are compared with.
        source: Where `names` were read, for the message.
        expected_source: Where `expected` were read.
        subset: Allow that `names` lacks some of `expected`.
        error: The class of the exception.

    Raises:
        UserError: The names differ (an `error`); both sides are listed.
    """
    own, wanted = set(names), set(expected)
    missing = [name for name in expected if name not in own]
    unknown = [name for name in names if name not in wanted]
    if not unknown and (subset or not missing):
        return
    details = [f"missing there: {listed(missing)}"] * bool(missing)
    details += [f"unknown: {listed(unknown)}"] * bool(unknown)
    hint = nearest(unknown[0], missing) if unknown and missing else ""
    raise error(
        f"class names differ: {expected_source} has {len(expected)} ({listed(expected)}), "
        f"{source} has {len(names)} ({listed(names)}); {'; '.join(details)}{hint}"
    )


def class_places(names: Sequence[str], ordered: Sequence[str]) -> list[int]:
    """For each of `names` its place in `ordered`, which has them all."""
    place = {name: label for label, name in enumerate(ordered)}
    return [place[name] for name in names]
