"""
Debian packages whose files the lab uses without installing them.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from tests.lab import processes
from tests.lab.errors import LabError


def unpack(package: str, directory: Path) -> None:
    """Download a package of this machine's Debian release and unpack its files into a directory."""
    with tempfile.TemporaryDirectory(prefix="bf-deb-") as work:
        download = ("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package)
        try:
            processes.run(*download, cwd=Path(work))
        except LabError:
            # The package lists are older than the archive, or missing.
            processes.run("apt-get", "-q", "update", timeout=300)
            processes.run(*download, cwd=Path(work))
        (deb,) = Path(work).glob("*.deb")
        processes.run("dpkg-deb", "--extract", deb, directory)


def cloud_kernel() -> str:
    """Name of the package that holds the newest kernel for virtual machines."""
    text = processes.run("apt-cache", "depends", "linux-image-cloud-amd64")
    match = re.search(r"Depends: (linux-image-\S+-cloud-amd64)", text)
    if match is None:
        raise LabError("apt-cache does not know linux-image-cloud-amd64: run `apt-get update`")
    return match[1]
