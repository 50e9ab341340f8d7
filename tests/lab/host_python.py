"""
The Python that the lab's host offers: 3.9, as on EL9, from a Debian 11 root that is never entered.
"""

from __future__ import annotations

from pathlib import Path

from tests.lab import cache, processes

MIRROR = "http://deb.debian.org/debian"

# Debian 11's own loader and libraries, so that the machine's newer ones do not matter. The wrapper is the way to
# start it: sys.executable is the program behind the loader, which does not run by itself.
WRAPPER = """\
#!/bin/sh
root={root}
libraries=$root/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu
exec "$root/lib/x86_64-linux-gnu/ld-2.31.so" --library-path "$libraries" "$root/usr/bin/python3.9" "$@"
"""


def build() -> Path:
    """Return the wrapper's path; the first time this takes some five seconds and the network."""
    return cache.entry("python39", [Path(__file__).read_bytes()], _build) / "python3"


def _build(directory: Path) -> None:
    # Only unpacked: no chroot and no mounts, which ordinary containers do not allow.
    processes.run(
        *("mmdebstrap", "--quiet", "--variant=extract"),
        "--include=python3,python3-minimal,libpython3-stdlib",
        *("bullseye", directory / "root", MIRROR),
        timeout=300,
    )
    wrapper = directory / "python3"
    # The cache entry is renamed once it is complete, so the wrapper finds its root from where it stands.
    wrapper.write_text(WRAPPER.format(root='$(dirname "$(readlink -f "$0")")/root'))
    wrapper.chmod(0o755)
