"""Files that somebody else may replace at any time, while the agent serves."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Callable, Generic, TypeVar

from blockferry_agent import errors

log = logging.getLogger(__name__)

T = TypeVar("T")


class Watched(Generic[T]):
    """
    What files hold, loaded again when one of them has changed. May be used by any number of threads.

    What cannot be loaded changes nothing, but for a word in the log: files that belong together are replaced one after
    another, and a bad one must not stop an agent that serves well.

    paths: the files.  load: makes something of them; raises Error.
    """

    def __init__(self, paths: Sequence[Path], load: Callable[[], T]) -> None:
        """Raises Error when they cannot be loaded now."""
        self._paths = paths
        self._load = load
        self._guard = threading.Lock()  # of what is below
        self._stamps = self._look()
        self._value = load()

    def get(self) -> T:
        """Return what they hold now, or did when they were good last. Never raises."""
        stamps = self._look()
        with self._guard:
            if stamps != self._stamps:
                self._stamps = stamps
                try:
                    self._value = self._load()
                except errors.Error as error:
                    log.warning("goes on with what it had of %s: %s", self._paths[0].name, error)
                else:
                    log.info("%s has changed, and is used from now on", self._paths[0].name)
            return self._value

    def _look(self) -> list[tuple[int, ...] | None]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Return what is another as soon as a file is; None when there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
