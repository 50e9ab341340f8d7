"""
Volumes: qcow2 and raw files, their bitmaps and backing files, made and inspected with qemu-img.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

Format = Literal["qcow2", "raw"]


@dataclasses.dataclass(frozen=True)
class Volume:
    """
    What qemu-img says about a volume.

    size: virtual size in bytes.  allocated: bytes on disk.
    backing: the next volume of the chain, or None.
    bitmaps: flags ("auto", "in-use") of every bitmap by its name.
    """

    path: Path
    format: Format
    size: int
    allocated: int
    backing: Path | None
    bitmaps: dict[str, frozenset[str]]
