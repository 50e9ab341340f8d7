"""
A disk image whose content is the same in every run, and changes by a twentieth from one version to the next.

Of every ten windows of 1 MiB four are random bytes, four are text that zstd makes a quarter of, and two are zeros: nobody
finds anything to share but the zeros. What changes are pieces of 64 KiB to 1 MiB, in grains of 64 KiB, all over the
disk, and what is there afterwards is random.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

from blockferry.repository.index import Range
from blockferry_agent.units import KiB, MiB

WORDS: Final = tuple(f"{number:x}".encode() * 3 for number in range(0, 4000, 7))
"""Of which text is made that compresses well."""

GRAIN: Final = 64 * KiB
CHANGED: Final = 0.05

_KINDS = "rtrt0rtrt0"
_PIECE = 4 * KiB
_PIECES = 2048


class ChangingImage:
    """
    The image.

    path: of the file.  size: bytes, a multiple of 1 MiB.  version: that it has now; the first is 0.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.version = 0
        self._write()

    def change(self, version: int) -> None:
        """Bring the image to a version, this one or a later one."""
        while self.version < version:
            self.version += 1
            with self.path.open("r+b") as file:
                for start, length in self.changes(self.size, self.version):
                    file.seek(start)
                    file.write(random.Random(f"{self.version} {start}").randbytes(length))

    @staticmethod
    def changes(size: int, version: int) -> list[Range]:
        """Return what a version changes in the one before it, in disk order, as a dirty bitmap would say it."""
        chance = random.Random(version)
        grains: set[int] = set()
        while len(grains) * GRAIN < CHANGED * size:
            first = chance.randrange(size // GRAIN)
            grains.update(range(first, min(first + chance.randint(1, 16), size // GRAIN)))
        ranges: list[Range] = []
        for grain in sorted(grains):
            if ranges and ranges[-1].start + ranges[-1].length == grain * GRAIN:
                ranges[-1] = Range(ranges[-1].start, ranges[-1].length + GRAIN)
            else:
                ranges.append(Range(grain * GRAIN, GRAIN))
        return ranges

    def _write(self) -> None:
        chance = random.Random(0)
        text = b" ".join(chance.choices(WORDS, k=_PIECE * _PIECES // 6))
        pieces = [text[start : start + _PIECE] for start in range(0, len(text) - _PIECE, _PIECE)]
        with self.path.open("wb") as file:
            for number in range(self.size // MiB):
                kind = _KINDS[number % len(_KINDS)]
                if kind == "0":
                    file.seek(MiB, 1)
                elif kind == "r":
                    file.write(chance.randbytes(MiB))
                else:
                    file.write(b"".join(chance.sample(pieces, MiB // _PIECE)))
            file.truncate(self.size)
