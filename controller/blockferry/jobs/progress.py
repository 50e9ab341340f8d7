"""How a job tells what it does, while it does it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """
    Receives what a job reports. Called from several threads, often; must return quickly and not raise.
    """

    def step(self, text: str) -> None:
        """The job goes on to something else, e.g. "waiting for the engine to start the backup"."""

    def warn(self, text: str) -> None:
        """Something the operator should know; the job goes on."""

    def begin(self, key: str, label: str, total: int) -> None:
        """A piece of work of `total` bytes begins, known as `key`."""

    def advance(self, key: str, position: int, moved: int) -> None:
        """`key` has come to `position` of its total; `moved` bytes of data were moved for it so far."""

    def end(self, key: str) -> None:
        """`key` is done."""


class Silent:
    """A progress that nobody looks at."""

    def step(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def begin(self, key: str, label: str, total: int) -> None: ...

    def advance(self, key: str, position: int, moved: int) -> None: ...

    def end(self, key: str) -> None: ...
