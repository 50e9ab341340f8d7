"""
The file systems of machines: Debian roots with systemd, sshd, sudo, Python and the users of an oVirt host.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from concurrent import futures
from pathlib import Path
from typing import Literal

from tests.lab import cache, processes

Release = Literal["bullseye", "bookworm", "trixie"]

# What `python3` is there: 3.9 as on EL9, the controller's, and the newest.
PYTHONS: dict[Release, str] = {"bullseye": "3.9", "bookworm": "3.11", "trixie": "3.13"}

MIRROR = "http://deb.debian.org/debian"

PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "openssh-server", "sudo", "python3"),
    *("iproute2", "procps", "ca-certificates"),
)
# EL has firewalld as a rule; one of the releases is enough to try it.
MORE_PACKAGES: dict[Release, tuple[str, ...]] = {"bullseye": (), "bookworm": (), "trixie": ("firewalld",)}

UNWANTED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")

# The ids that an oVirt host has: vdsm and kvm are fixed in its packages, the others are Debian's and the lab's choice.
VDSM_ID = 36
QEMU_ID = 107
IMAGEIO_ID = 990

# Who may use sudo: operator without a password, clerk with one.
OPERATOR = "operator"
CLERK = "clerk"
CLERK_PASSWORD = "correct horse"

AUTHORIZED_KEYS = "etc/ssh/authorized_keys"

SETUP = f"""
groupadd --system --gid {VDSM_ID} kvm
groupadd --system --gid {QEMU_ID} qemu
groupadd --system --gid {IMAGEIO_ID} ovirtimg
useradd --system --uid {QEMU_ID} --gid qemu --groups kvm,cdrom --shell /usr/sbin/nologin qemu
useradd --system --uid {IMAGEIO_ID} --gid ovirtimg --groups qemu,kvm --shell /usr/sbin/nologin ovirtimg
useradd --system --uid {VDSM_ID} --gid kvm --groups qemu,ovirtimg --shell /usr/sbin/nologin vdsm

useradd --create-home --shell /bin/bash --gid operator {OPERATOR}
useradd --create-home --shell /bin/bash {CLERK}
echo '{CLERK}:{CLERK_PASSWORD}' | chpasswd
cat >/etc/sudoers.d/lab <<END
{OPERATOR} ALL=(ALL) NOPASSWD: ALL
{CLERK} ALL=(ALL) ALL
END
chmod 440 /etc/sudoers.d/lab

# Each machine gets its own.
rm -f /etc/ssh/ssh_host_* /etc/machine-id /etc/hostname
cat >/etc/ssh/sshd_config <<END
HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile /{AUTHORIZED_KEYS}
PermitRootLogin prohibit-password
PasswordAuthentication yes
KbdInteractiveAuthentication no
UsePAM yes
UseDNS no
PrintMotd no
MaxStartups 100
Subsystem sftp internal-sftp
END

# Nothing that starts by itself in the middle of a test.
systemctl mask --quiet apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \\
    console-getty.service systemd-timesyncd.service
if [ -e /usr/sbin/firewalld ]; then systemctl disable --quiet firewalld; fi
"""


def build(release: Release) -> Path:
    """Return the root of a release, which nobody may change; the first time this takes 15 to 35 s and the network."""
    packages = PACKAGES + MORE_PACKAGES[release]
    inputs = [part.encode() for part in (SETUP, inspect.getsource(_build), *UNWANTED, *packages)]
    entry = cache.entry(f"root-{release}", inputs, lambda directory: _build(release, packages, directory))
    return entry / "root"


def build_all(releases: Collection[Release]) -> None:
    """Build the roots of these releases side by side, unless they are there."""
    with futures.ThreadPoolExecutor() as pool:
        for _ in pool.map(build, set(releases)):
            pass


def _build(release: Release, packages: Sequence[str], directory: Path) -> None:
    setup = directory / "setup"
    setup.write_text(SETUP)
    # In a mount namespace of its own: whatever is mounted into the root while it is built, nobody else sees it.
    processes.run(
        *("unshare", "--mount", "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase"),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in UNWANTED),
        f"--include={','.join(packages)}",
        f'--customize-hook=chroot "$1" sh -eu <{setup}',
        *(release, directory / "root", MIRROR),
        timeout=600,
    )
