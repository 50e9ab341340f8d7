"""
Things that take long to build and never change, kept between runs.

They live in $BLOCKFERRY_LAB_CACHE (default ~/.cache/blockferry-lab), each under a name with a hash of its inputs.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path


def directory() -> Path:
    configured = os.environ.get("BLOCKFERRY_LAB_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "blockferry-lab"


def entry(name: str, inputs: Iterable[bytes], build: Callable[[Path], None]) -> Path:
    """
    Return the directory that build() filled from these inputs, calling it only the first time.

    Of several labs that ask at once one builds and the others wait.  A build that fails or is killed leaves nothing
    that a later one could take for complete.
    """
    digest = hashlib.sha256()
    for blob in inputs:
        digest.update(len(blob).to_bytes(8, "big") + blob)
    root = directory()
    root.mkdir(parents=True, exist_ok=True)
    path = root / f"{name}-{digest.hexdigest()[:16]}"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            # An entry that was being built when its lab was killed: we hold the lock, so nobody is building it now.
            for leftover in root.glob(f"{name}.tmp-*"):
                shutil.rmtree(leftover)
            work = Path(tempfile.mkdtemp(prefix=f"{name}.tmp-", dir=root))
            try:
                build(work)
                work.rename(path)
            except BaseException:
                shutil.rmtree(work)
                raise
    return path
