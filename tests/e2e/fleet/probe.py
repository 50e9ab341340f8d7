"""
Tries what an agent may do and what it must not, as a program of a host: runs on Python 3.9, needs nothing.

Each try ends with "yes", or with the name of its error.
"""

from __future__ import annotations

import ctypes
import errno
import grp
import json
import mmap
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple


class Outcome(NamedTuple):
    """
    needed, needless, ports: what came of each try.  status: of the process, from /proc.  groups: its, by name.
    """

    needed: dict[str, str]
    needless: dict[str, str]
    ports: dict[str, str]
    status: dict[str, str]
    groups: list[str]


def tried(action: Callable[[], object]) -> str:
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    return "yes"


def connect(address: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(address)


def bind(kind: socket.SocketKind, port: int) -> None:
    with socket.socket(socket.AF_INET, kind) as listener:
        listener.bind(("0.0.0.0", port))


def entries(path: str) -> list[Path]:
    return list(Path(path).iterdir())


def make(path: str, mode: int = 0o600) -> None:
    """Make a file, and remove it again."""
    target = Path(path)
    target.write_text("x")
    try:
        target.chmod(mode)
    finally:
        target.unlink()


def call(name: str, *arguments: object) -> None:
    """Call a function of the C library that says -1 and errno."""
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)


def needed() -> dict[str, str]:
    runtime = os.environ.get("RUNTIME_DIRECTORY", "/run/blockferry-agent")
    return {
        "Image I/O's control socket": tried(lambda: connect("/run/ovirt-imageio/sock")),
        "Image I/O's data socket": tried(lambda: connect("\0/org/ovirt/imageio")),
        "sockets of live backups": tried(partial(entries, "/run/vdsm/backup")),
        "sockets of qemu-nbd": tried(partial(entries, "/run/vdsm/nbd")),
        "its configuration": tried(lambda: Path("/opt/blockferry-agent/current/agent.json").read_bytes()),
        "its key": tried(lambda: Path("/opt/blockferry-agent/current/tls/agent.key").read_bytes()),
        "its socket's directory": tried(lambda: make(f"{runtime}/x")),
    }


def needless() -> dict[str, str]:
    runtime = os.environ.get("RUNTIME_DIRECTORY", "/run/blockferry-agent")
    return {
        **{f"read {path}": tried(Path(path).read_bytes) for path in READ},
        **{f"list {path}": tried(partial(entries, path)) for path in LISTED},
        **{f"write in {path}": tried(partial(make, f"{path}/x")) for path in WRITTEN},
        "change its configuration": tried(lambda: Path("/opt/blockferry-agent/current/agent.json").open("ab").close()),
        "make a set-user-id program": tried(lambda: make(f"{runtime}/x", 0o4755)),
        "become root": tried(lambda: os.setuid(0)),
        "signal the first process": tried(lambda: os.kill(1, 0)),
        "mount": tried(lambda: call("mount", b"tmpfs", b"/mnt", b"tmpfs", 0, None)),
        "make a namespace of users": tried(lambda: call("unshare", 0x10000000)),
        "change the root": tried(lambda: os.chroot("/mnt")),
        "set the clock": tried(lambda: time.clock_settime(time.CLOCK_REALTIME, time.time())),
        "set the host name": tried(lambda: socket.sethostname("probe")),
        "memory to write and to run": tried(
            lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
        ),
        "packets": tried(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()),
        "raw sockets": tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()),
        "settings of the network": tried(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()),
        "the system's bus": tried(lambda: connect("/run/dbus/system_bus_socket")),
        "libvirt": tried(lambda: connect("/run/libvirt/libvirt-sock")),
    }


# Other users' files, whatever their modes say.
READ = ("/etc/shadow", "/root/secret", "/home/clerk/open", "/var/lib/other/secret")
LISTED = ("/root", "/home")
WRITTEN = (
    *("/", "/etc", "/usr", "/opt", "/opt/blockferry-agent", "/opt/blockferry-agent/current"),
    *("/run", "/run/vdsm/nbd", "/var", "/var/lib", "/var/log", "/dev"),
)


def status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def group_names() -> list[str]:
    return sorted(grp.getgrgid(number).gr_name for number in {*os.getgroups(), os.getgid()})


def main() -> None:
    outcome = Outcome(
        needed=needed(),
        needless=needless(),
        ports={
            "TCP": tried(lambda: bind(socket.SOCK_STREAM, 8123)),
            "UDP": tried(lambda: bind(socket.SOCK_DGRAM, 8123)),
        },
        status=status(),
        groups=group_names(),
    )
    print(json.dumps(outcome._asdict()), flush=True)


if __name__ == "__main__":
    main()
