"""The lock of a run folder: one process writes in it.

The lock is the kernel's, so it goes with its process, however that ends; where a file system has no locks, `filelock`
falls back to a file that only one process can make. The file says who holds it, for people.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from pathlib import Path

from detres.errors import UserError
from detres.files import explained

NAME = ".lock"
# In which data workers notice that their main process was killed; until then they may hold the lock.
ENDING_SECONDS = 10.0


class FolderLock:
    """A folder that this process alone writes in, until `release`.

    Args:
        folder: It exists.

    Raises:
        UserError: Another process has it, which is named; or the lock's file cannot be made.
    """

    def __init__(self, folder: Path):
        import filelock

        self._path = folder / NAME
        self._lock = filelock.FileLock(self._path)
        owner = _owner(self._path)
        try:
            with explained(self._path):
                self._lock.acquire(timeout=ENDING_SECONDS if owner and _is_gone(*owner) else 0)
                self._path.write_text(json.dumps({"host": socket.gethostname(), "process": os.getpid()}))
        except filelock.Timeout:
            who = f"process {owner[1]} on {owner[0]}" if owner else "another process"
            raise UserError(
                f"{folder} is in use: {who} writes this run; wait for its end or stop it, or choose another --out"
            ) from None

    def release(self) -> None:
        """Let others in, and leave no file behind. Only the owner does; a second call does nothing."""
        if self._lock.is_locked:
            with suppress(OSError):  # the folder may be gone, or read-only by now
                self._path.unlink()
            self._lock.release()


def _owner(path: Path) -> tuple[str, int] | None:
    """Host and process in a lock's file; None where it is missing or says something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return str(content["host"]), int(content["process"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_gone(host: str, process: int) -> bool:
    """Whether the process that wrote a lock's file has ended; one of another machine counts as running.

    Where this process has its number, the number was given out again.
    """
    if host != socket.gethostname():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return process == os.getpid()
