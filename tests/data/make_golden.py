"""
Makes the golden repositories, once for each version of the format. They are never made again: what was written by then
must be read for ever.

    python -m tests.data.make_golden
"""

from __future__ import annotations

import random
import tarfile
import tempfile
from pathlib import Path

from blockferry.repository import KeyFile, Keyring, Passphrase, Repository, keys
from blockferry_agent.units import KiB
from tests.unit import repository_images as images

HERE = Path(__file__).parent
WINDOW = 256 * KiB
KEY = KeyFile(bytes(range(32)))


def contents() -> list[bytes]:
    """Return a disk of 1.5 MiB at two points: text, zeros and noise, then a few grains that changed."""
    noise = random.Random(1).randbytes
    old = b"Blockferry " * 30_000 + bytes(300_000) + noise(20_000)
    old = old[: 512 * (len(old) // 512)].ljust(6 * WINDOW, b"\0")
    new = old[:70_000] + noise(10_000) + bytes(50_000) + old[130_000:]
    return [old, new]


def main() -> None:
    """Write both archives beside this file."""
    for name, secret in (("plain", None), ("encrypted", KEY)):
        with tempfile.TemporaryDirectory() as path:
            repository = Repository.init(path, WINDOW, secret=secret)
            old, new = contents()
            point = images.full(repository, old)
            images.incremental(repository, old, new, point)
            if secret is not None:
                keys._COST = 2**10
                Keyring.open(path, secret).add(Passphrase("golden"))
            with tarfile.open(HERE / f"repository-1-{name}.tar.gz", "w:gz") as archive:
                archive.add(path, arcname=name)


if __name__ == "__main__":
    main()
