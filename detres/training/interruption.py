"""Ctrl-C and SIGTERM in training: the last whole step is saved; a second signal stops at once."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

log = logging.getLogger("detres")


class Stopped(KeyboardInterrupt):
    """A signal came and the state is that of a whole step, which can be saved."""


class StopRequest:
    """While entered, the first SIGINT or SIGTERM sets `wanted`; the second stops as without this class, at once.

    Signals are only caught in the main thread; elsewhere `wanted` stays False.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._raised: type[KeyboardInterrupt] | None = None
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

    def check(self) -> None:
        """Stop where that is wanted.

        Raises:
            Stopped: A signal has come.
        """
        if self.wanted:
            raise Stopped

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block in which the first signal stops at once, because all is saved and there is no step to finish."""
        with self._raising(KeyboardInterrupt):
            yield

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A block between steps that may wait for long: a signal, also one that came before, raises `Stopped`."""
        with self._raising(Stopped):
            self.check()
            yield

    @contextmanager
    def _raising(self, kind: type[KeyboardInterrupt]) -> Iterator[None]:
        self._raised = kind
        try:
            yield
        finally:
            self._raised = None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # this is a loader's worker, forked from the main process, which ends it
        if self.wanted or self._raised is KeyboardInterrupt:
            previous = self._previous[number]
            if callable(previous):
                previous(number, frame)
            raise KeyboardInterrupt
        self.wanted = True
        name = signal.Signals(number).name
        log.warning("%s: saving the state of the last whole step; once more stops at once", name)
        if self._raised is Stopped and not is_importing(frame):
            raise Stopped


def is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported in a frame: there an exception can be swallowed, or leave half a module."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
