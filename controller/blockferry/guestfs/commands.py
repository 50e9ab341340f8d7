"""What is said to guestfish, and how its answers are read (guestfish(1), guestfs(3))."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_PLAIN = re.compile(rb"[A-Za-z0-9/._+:=@-]+")
_ESCAPED = re.compile(rb"[^ !#-\[\]-~]")
"""What cannot stand between quotes as it is: the quote, the backslash, and all that is not printed ASCII."""

LONGEST_LINE = 8191
"""Bytes of a command with its end: guestfish would take what comes after them for another command."""


class Status(NamedTuple):
    """
    What a file system says of a file.

    mode: with its type.  mtime: nanoseconds since 1970.
    """

    mode: int
    uid: int
    gid: int
    size: int
    mtime: int


def command(name: str, *words: bytes | str) -> bytes:
    """
    Return a line for guestfish. It goes on when the command fails.

    Raises ValueError for words that are too long for a line, and for NUL in one.
    """
    line = _line(name, *words)
    if len(line) > LONGEST_LINE:
        raise ValueError("a name that is too long for guestfish")
    return line


def _line(name: str, *words: bytes | str) -> bytes:
    encoded = (word.encode() if isinstance(word, str) else word for word in words)
    return b" ".join([b"-" + name.encode(), *map(quoted, encoded)]) + b"\n"


def quoted(word: bytes) -> bytes:
    """Return a word as one argument, whatever it has in it. Raises ValueError for NUL, which no name has."""
    if b"\0" in word:
        raise ValueError("a name with NUL in it")
    if _PLAIN.fullmatch(word) and not word.startswith(b"-"):
        return word
    return b'"' + _ESCAPED.sub(lambda found: b"\\x%02x" % found[0][0], word) + b'"'


def is_listable(name: bytes) -> bool:
    """Tell whether a name can be a word of a list, in which nothing can be quoted safely."""
    return bool(_PLAIN.fullmatch(name))


def status(answer: bytes) -> Status:
    """Return what `lstatns` answered. Raises ValueError when it is no such answer."""
    (found,) = statuses(answer)
    return found


def statuses(answer: bytes) -> Iterator[Status]:
    """Generate what `lstatnslist` (or `lstatns`) answered, in the order of the names. Raises ValueError."""
    found: dict[bytes, int] = {}
    for line in answer.splitlines():
        key, colon, value = line.strip().partition(b": ")
        if colon:
            found[key] = int(value)
        if key == b"st_spare6":
            yield _status(found)
            found = {}


def _status(found: dict[bytes, int]) -> Status:
    try:
        return Status(
            found[b"st_mode"],
            found[b"st_uid"],
            found[b"st_gid"],
            found[b"st_size"],
            found[b"st_mtime_sec"] * 1_000_000_000 + found[b"st_mtime_nsec"],
        )
    except KeyError as error:
        raise ValueError(f"it does not say {error}") from None


def pairs(answer: bytes) -> dict[str, str]:
    """Return what is answered as lines of "name: value"."""
    lines = (line.decode(errors="replace").partition(": ") for line in answer.splitlines())
    return {name: value for name, colon, value in lines if colon}


def groups(directory: bytes, names: Iterable[bytes]) -> Iterator[list[bytes]]:
    """
    Cut names in a directory into groups, each for one `lstatnslist`.

    What cannot be in a list is a group of its own.
    """
    room = LONGEST_LINE - len(_line("lstatnslist", directory, b""))
    group: list[bytes] = []
    length = 0
    for name in names:
        if not is_listable(name):
            yield [name]
            continue
        if group and length + len(name) + 1 > room:
            yield group
            group, length = [], 0
        group.append(name)
        length += len(name) + 1
    if group:
        yield group
