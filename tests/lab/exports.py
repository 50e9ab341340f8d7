"""
What an NBD export holds, by independent tools: libnbd's nbdcopy and nbdinfo.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from tests.lab import processes
from tests.lab.errors import LabError


class Range(NamedTuple):
    """
    start, length: bytes.  type: the flags of the meta context (1 in a dirty bitmap is dirty).
    """

    start: int
    length: int
    type: int


def copy(url: str, target: Path) -> None:
    """Copy an export into a raw file, made here.  url: as in a ticket, nbd:unix:PATH[:exportname=NAME]."""
    processes.run("nbdcopy", nbd_uri(url), target, timeout=600)


def contexts(url: str) -> list[str]:
    """The meta contexts that the export offers."""
    document = json.loads(processes.run("nbdinfo", "--json", nbd_uri(url)))
    names: list[str] = document["exports"][0]["contexts"]
    return names


def ranges(url: str, context: str = "base:allocation") -> list[Range]:
    """The export's map in one meta context, over the whole disk."""
    document = json.loads(processes.run("nbdinfo", "--json", f"--map={context}", nbd_uri(url)))
    return [Range(entry["offset"], entry["length"], entry["type"]) for entry in document]


def dirty(url: str) -> list[Range]:
    """The dirty ranges of an export, which has one bitmap."""
    (context,) = [name for name in contexts(url) if name.startswith("qemu:dirty-bitmap:")]
    return [entry for entry in ranges(url, context) if entry.type & 1]


def nbd_uri(url: str) -> str:
    """Turn QEMU's and imageio's way to write an NBD address into the standard one."""
    match = re.fullmatch(r"nbd:unix:([^:]+)(?::exportname=(.*))?", url)
    if match is None:
        raise LabError(f"Not an NBD address of a unix socket: {url}")
    path, name = match.groups()
    return f"nbd+unix:///{quote(name or '')}?socket={quote(path)}"
