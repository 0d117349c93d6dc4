"""Ctrl-C and SIGTERM in training: the current step is finished and saved; a second signal stops at once."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

log = logging.getLogger("detres")


class StopRequest:
    """While entered, the first SIGINT or SIGTERM sets `wanted`; the second raises KeyboardInterrupt at once.

    Signals are only caught in the main thread; elsewhere `wanted` stays False.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._at_once = False
        self._process = os.getpid()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block in which the first signal stops at once, because all is saved and there is no step to finish."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # this is a loader's worker, forked from the main process, which ends it
        if self.wanted or self._at_once:
            raise KeyboardInterrupt
        self.wanted = True
        log.warning(
            "%s: finishing this step and saving; once more stops at once", signal.Signals(number).name
        )
