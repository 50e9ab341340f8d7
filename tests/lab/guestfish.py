"""
guestfish, in a Debian root of its own: it needs a hundred packages and a kernel, which this machine shall not get.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from tests.lab import cache, processes
from tests.lab.machines.roots import MIRROR, UNWANTED

RELEASE = "bookworm"
PACKAGES = ("guestfish", "qemu-system-x86", "qemu-utils", "linux-image-cloud-amd64")

# libguestfs boots a small machine of its own; KVM that is there and does not work would end it.
ENVIRONMENT = ("LIBGUESTFS_BACKEND=direct", "LIBGUESTFS_BACKEND_SETTINGS=force_tcg", "HOME=/root")


def run(*words: str) -> str:
    """Run guestfish, and return what it printed.  The root is built the first time, in a minute and from the network."""
    return processes.run("chroot", _root(), "env", *ENVIRONMENT, "guestfish", *words, timeout=120)


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
