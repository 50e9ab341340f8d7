"""
guestfish, in a Debian root of its own: it needs a hundred packages and a kernel, which this machine shall not get.
"""

from __future__ import annotations

import contextlib
import inspect
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.lab import cache, processes
from tests.lab.machines.roots import MIRROR, UNWANTED

RELEASE = "bookworm"
PACKAGES = ("guestfish", "libguestfs-xfs", "qemu-system-x86", "qemu-utils", "linux-image-cloud-amd64")

# libguestfs boots a small machine of its own; KVM that is there and does not work would end it.
ENVIRONMENT = ("LIBGUESTFS_BACKEND=direct", "LIBGUESTFS_BACKEND_SETTINGS=force_tcg", "HOME=/root")


def run(*words: str) -> str:
    """Run guestfish, and return what it printed.  The root is built the first time, in a minute and from the network."""
    return processes.run("chroot", _root(), "env", *ENVIRONMENT, "guestfish", *words, timeout=120)


def run_script(script: str) -> None:
    """Run guestfish with a script. Its /tmp/… are those of `exchange`."""
    processes.run("chroot", _root(), "env", *ENVIRONMENT, "guestfish", input=script.encode(), timeout=300)


class Installed(NamedTuple):
    """
    guestfish as if it was installed here.

    path: directory for $PATH, with a script that calls it.  temporary: for $TMPDIR: it sees what is made there, too.
    """

    path: Path
    temporary: Path


@contextlib.contextmanager
def installed() -> Iterator[Installed]:
    """Let programs of this machine find a guestfish, which reaches the sockets that they make in `temporary`."""
    root = _root()
    inside = Path(tempfile.mkdtemp(prefix="blockferry-", dir=root / "tmp"))
    # Of the same name on both sides, and short enough for the names of sockets.
    temporary = Path("/tmp") / inside.name
    path = inside / "bin"
    path.mkdir()
    temporary.symlink_to(inside)
    try:
        program = path / "guestfish"
        program.write_text(f'#!/bin/sh\nexec chroot {root} env {" ".join(ENVIRONMENT)} guestfish "$@"\n')
        program.chmod(0o755)
        yield Installed(path, temporary)
    finally:
        temporary.unlink()
        shutil.rmtree(inside)


def _root() -> Path:
    inputs = [part.encode() for part in (inspect.getsource(_build), RELEASE, MIRROR, *UNWANTED, *PACKAGES)]
    return cache.entry("guestfish", inputs, _build) / "root"


def _build(directory: Path) -> None:
    # In a mount namespace of its own: whatever is mounted into the root while it is built, nobody else sees it.
    processes.run(
        *("unshare", "--mount", "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase"),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in UNWANTED),
        f"--include={','.join(PACKAGES)}",
        *(RELEASE, directory / "root", MIRROR),
        timeout=600,
    )
