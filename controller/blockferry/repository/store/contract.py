"""What every store does, and what its users must know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple, Protocol

Durability = Literal["full", "none"]
"""
What a power failure of the machine that has the directory can cost. An object store keeps whatever it said it has.

full: nothing that was committed.
none: nothing is flushed, so also what was committed in the last half minute or so: points may be gone, or damaged,
which `blockferry verify` finds. When the controller alone is killed, nothing is lost.
"""


class Listed(NamedTuple):
    """
    An object as a listing has it.

    name: of the object.  length: bytes that it takes.  modified: seconds since 1970, by the clock of the storage.
    """

    name: str
    length: int
    modified: float


class Store(Protocol):
    """
    Named objects under one URL. May be used by several threads, and several controllers, at once.

    Raises RepositoryFull when there is no room, and RepositoryError for whatever else the storage says.
    """

    @property
    def url(self) -> str:
        """Where the objects are, for messages; no slash at the end."""

    @property
    def side_by_side(self) -> int:
        """How many calls are worth having under way at once."""

    @property
    def vouches(self) -> bool:
        """
        Whether an object that is there is durable and whole.

        An object store took it whole before it said so. A directory may hold what a power failure has torn.
        """

    def get(self, name: str, limit: int) -> bytes:
        """Return the object. Raises NotFound, and Damaged when it is longer than `limit` bytes."""

    def holds(self, name: str) -> bool:
        """Tell whether the object is there."""

    def forget(self, name: str) -> None:
        """
        Let the next `get` read what the storage has, and not what this machine remembers of the object.

        When the kernel fails to write a page of a file, it says so once, and may keep the page as if it was written.
        """

    def put(self, name: str, data: bytes) -> None:
        """Make or replace the object. After an error there is the old one, or none."""

    def put_new(self, name: str, data: bytes) -> None:
        """
        Make the object. Raises Conflict when there is one: of several that try at once, one succeeds.

        After another error it may be there.
        """

    def listing(self, folder: str) -> Iterator[Listed]:
        """Generate all objects in the folder and its folders, in no order."""

    def delete(self, name: str) -> None:
        """Delete the object; it is no error when there is none."""

    def delete_all(self, names: Iterable[str]) -> None:
        """
        Delete objects, many at once where the storage can; otherwise each is taken from `names` right before.

        What taking one raises ends it, and is raised.
        """

    def remove_unfinished(self, before: float) -> list[Listed]:
        """Remove what killed writers left and no listing has, older than a time by the storage's clock. Return it."""

    def batch(self) -> AbstractContextManager[Batch]:
        """Begin a batch. The caller leaves it, whether it committed or not."""


class Batch(Protocol):
    """What was put into the store since a moment, by anyone."""

    def flush(self) -> None:
        """Make what was put durable."""

    def commit(self, name: str, data: bytes) -> None:
        """Make what was put durable, and only then put `name`, durable when this returns."""
