"""Huge disks: what it costs must follow what is there, not the size."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from blockferry_agent import nbd
from blockferry_agent.nbd import Address
from blockferry_agent.units import GiB, KiB
from tests.bench import stage
from tests.bench.stage import Stage
from tests.component import nbd_servers
from tests.lab import processes

TiB = 1024 * GiB
GRAIN = 64 * KiB


@contextlib.contextmanager
def changed(size: int = 1 * TiB, dirty: int = 1 * GiB) -> Iterator[Stage]:
    """Have a stage with a sparse disk, `dirty` bytes of which were changed in grains that lie all over it."""
    with tempfile.TemporaryDirectory(prefix="bfb", dir="/var/tmp") as place:
        directory = Path(place)
        image = nbd_servers.qcow2(directory / "huge.qcow2", size)
        nbd_servers.add_bitmap(image, "bench")
        starts = range(0, size, size // (dirty // GRAIN))
        for batch in range(0, len(starts), 2000):
            nbd_servers.write(image, *(f"write -q {start} {GRAIN}" for start in starts[batch : batch + 2000]))
        with (
            stage.serving(directory, image, "--bitmap=bench", format="qcow2") as address,
            stage.around(directory, image, size, address) as scene,
        ):
            yield scene


class Extents(NamedTuple):
    """count: of extents.  seconds: to list them all.  grown: bytes of memory at the peak, more than before."""

    count: int
    seconds: float
    grown: int


def fragmented(size: int = 8 * TiB) -> Extents:
    """List the extents of a disk whose every other 4 MiB is a hole."""
    with _fragments(size) as address:
        before = stage.resident_peak_of_self()
        began = time.monotonic()
        with contextlib.closing(nbd.Connection(address)) as connection:
            count = sum(1 for _ in connection.extents(0, size, incremental=False))
        return Extents(count, time.monotonic() - began, stage.resident_peak_of_self() - before)


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
