"""The end of a training that waits in vain for a worker or a file system (`train.hang_minutes`)."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from detres.errors import UserError

log = logging.getLogger("detres")

SIGNAL = getattr(signal, "SIGUSR2", None)
REACTION_SECONDS = 10.0  # after which a main thread that no signal wakes is given up
SAVING_SECONDS = 60.0


class HungError(UserError):
    """What a training waited for did not come."""


class Watch:
    """While entered, a thread that ends a wait of the main thread after `minutes`.

    The main thread gets `HungError` by a signal. Where the system does not wake it (a dead network folder), the thread
    saves and ends the program itself. Without a main thread or signals nothing is watched.

    Args:
        minutes: The longest wait; None: for ever.
        save: Saves the state where it is whole.
    """

    def __init__(self, minutes: float | None, save: Callable[[], None]):
        self._seconds = None if minutes is None else minutes * 60
        self._save = save
        self._lock = threading.Lock()
        self._waits: tuple[str, float, bool] | None = None
        self._overdue: tuple[str, float, bool] | None = None
        self._ended = threading.Event()
        self._previous: object = None

    def __enter__(self) -> Watch:
        if threading.current_thread() is not threading.main_thread() or SIGNAL is None:
            self._seconds = None
        if self._seconds is not None:
            self._previous = signal.signal(SIGNAL, self._receive)  # type: ignore[arg-type]
            threading.Thread(target=self._look, args=(self._seconds,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._seconds is not None:
            signal.signal(SIGNAL, self._previous)  # type: ignore[arg-type]

    @contextmanager
    def waiting(self, what: str, *, whole: bool = False) -> Iterator[None]:
        """A block that waits for `what`; `whole` says that the state can be saved meanwhile.

        Raises:
            HungError: It did not come.
        """
        self._waits = (what, time.monotonic(), whole)
        try:
            yield
        finally:
            with self._lock:
                self._waits = None

    def _look(self, seconds: float) -> None:
        while not self._ended.wait(min(1.0, seconds / 4)):
            waits = self._waits
            if waits is None or time.monotonic() - waits[1] < seconds:
                continue
            self._overdue = waits
            signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)  # type: ignore[arg-type]
            if self._ended.wait(REACTION_SECONDS):
                return
            with self._lock:
                if self._waits is waits:
                    self._end(waits)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._overdue is not None and self._waits is self._overdue:
            raise HungError(self._message(self._overdue[0]))

    def _end(self, waits: tuple[str, float, bool]) -> None:
        if waits[2]:
            saving = threading.Thread(target=self._save, daemon=True)
            saving.start()
            saving.join(SAVING_SECONDS)
        os.write(2, f"error: {self._message(waits[0])}\n".encode())
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(UserError.exit_status)

    def _message(self, what: str) -> str:
        return (
            f"waited {(self._seconds or 0) / 60:g} minutes (train.hang_minutes) in vain for {what}: a process or a file"
            " system hangs; --resume goes on with the training"
        )
