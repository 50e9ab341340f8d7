"""Huge disks: what it costs must follow what is there, not the size."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from blockferry_agent import nbd, reader
from blockferry_agent.blocks import ReadRequest
from blockferry_agent.nbd import Address
from blockferry_agent.units import GiB, KiB, MiB
from tests.bench import stage
from tests.lab import processes
from tests.component import nbd_servers

TiB = 1024 * GiB
GRAIN = 64 * KiB


class Finding(NamedTuple):
    """One row: what was done, and figures as they stand in the table."""

    what: str
    seconds: float
    figures: str


def incremental(size: int = 1 * TiB, dirty: int = 1 * GiB) -> Finding:
    """Read an incremental of a sparse disk whose changed grains lie all over it."""
    with tempfile.TemporaryDirectory(prefix="bfb", dir="/var/tmp") as place:
        directory = Path(place)
        image = nbd_servers.qcow2(directory / "huge.qcow2", size)
        nbd_servers.add_bitmap(image, "bench")
        spacing = size // (dirty // GRAIN)
        starts = range(0, size, spacing)
        for batch in range(0, len(starts), 2000):
            nbd_servers.write(image, *(f"write -q {start} {GRAIN}" for start in starts[batch : batch + 2000]))
        with stage.serving(directory, image, "--bitmap=bench", format="qcow2") as address:
            began = time.monotonic()
            moved = 0
            with reader.read(
                lambda: nbd.Connection(address, bitmap=True), ReadRequest(0, size, True, MiB), workers=4
            ) as reading:
                for _ in reading:
                    pass
                moved = reading.summary.moved
            seconds = time.monotonic() - began
    return Finding(
        f"incremental of a sparse disk of {size // GiB} GiB, {dirty // MiB} MiB dirty in grains of 64 KiB",
        seconds,
        f"{moved / dirty:.2f} bytes moved per dirty byte, {dirty / MiB / seconds:.0f} MiB/s",
    )


def fragmented(size: int = 8 * TiB) -> Finding:
    """List the extents of a disk in which data and holes alternate all along."""
    with _fragments(size) as address:
        before = stage.resident_peak_of_self()
        began = time.monotonic()
        count = 0
        with contextlib.closing(nbd.Connection(address)) as connection:
            for _ in connection.extents(0, size, incremental=False):
                count += 1
        seconds = time.monotonic() - began
        grown = stage.resident_peak_of_self() - before
    return Finding(
        f"extents of a fragmented disk of {size // TiB} TiB",
        seconds,
        f"{count} extents, {grown / MiB:.1f} MiB of memory more than before",
    )


@contextlib.contextmanager
def _fragments(size: int) -> Iterator[Address]:
    """Serve a disk whose every other 4 MiB is a hole."""
    with tempfile.TemporaryDirectory(prefix="bfb") as place:
        script = Path(place) / "fragments.sh"
        script.write_text(
            "case $1 in\n"
            f"get_size) echo {size} ;;\n"
            "pread) head -c $3 /dev/zero ;;\n"
            "can_extents) exit 0 ;;\n"
            "extents)\n"
            "  awk -v start=$4 -v count=$3 'BEGIN { step = 4194304; end = start + count;\n"
            "    for (at = start - start % step; at < end; at += step)\n"
            '      printf "%.0f %d %s\\n", at, step, (at / step) % 2 ? "hole,zero" : "" }\' ;;\n'
            "*) exit 2 ;;\n"
            "esac\n"
        )
        processes.run("chmod", "+x", script)
        with nbd_servers.nbdkit(Path(place), "sh", str(script)) as address:
            yield address
