"""Very many small chunks in a directory: how many a second are written, found again, read and removed."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from blockferry_agent.units import KiB, MiB
from tests.bench import ours
from tests.bench.repository import Place, Used


def table(chunks: int) -> str:
    """Return a table of what a repository of `chunks` chunks costs, in two points, of which one is deleted."""
    half = chunks // 2
    with tempfile.TemporaryDirectory(prefix="bfb", dir="/var/tmp") as directory:
        place = Place(Path(directory))
        url = place.new("repository")
        _do(place, "init", url, f"--window={256 * KiB}", "--compression=none")
        lines = [
            "| | seconds | chunks per second | processor seconds | MiB of memory at the peak |",
            "|---|---|---|---|---|",
            _line(f"a backup of {half:,} chunks", half, _do(place, "fill", url, f"--chunks={half}")),
            _line(f"a backup of {half:,} others", half, _do(place, "fill", url, f"--chunks={half}", "--content=1")),
            _line("the same once more, all of it there", half, _do(place, "fill", url, f"--chunks={half}")),
            _line(f"reading and checking all {chunks:,}", chunks, _do(place, "verify", url)),
        ]
        # The newest point has what the first one needs, too: it frees nothing.
        _do(place, "collect", url)
        removed = _do(place, "collect", url)
        left = sum(1 for path in (Path(url) / "chunks").rglob("*") if path.is_file())
        # Pages of the index are chunks, too.
        assert half <= left < 1.1 * half + 10, f"{left} chunks are left of {chunks}"
        lines.append(_line(f"`collect`: {half:,} of {chunks:,} removed", chunks, removed))
    return "\n".join(lines)


def _line(what: str, chunks: int, used: Used) -> str:
    return (
        f"| {what} | {used.seconds:.1f} | {chunks / used.seconds:,.0f} | {used.processor:.1f} "
        f"| {used.memory / MiB:.0f} |"
    )


def _do(place: Place, operation: str, *options: str) -> Used:
    return place.run(sys.executable, "-m", ours.__name__, operation, *options)
