"""The agent's own user on a host, and the groups whose sockets it must open."""

from __future__ import annotations

import grp
import pwd

from blockferry.deploy.onhost import commands
from blockferry.deploy.onhost.refusal import Refused

NAME = "blockferry-agent"
COMMENT = "Blockferry agent"

SOCKET_GROUPS = ("kvm", "ovirtimg", "qemu")
"""Of Image I/O's control socket, of vdsm's directories and of QEMU's sockets (ovirt-facts, "owner:group mode")."""


def make() -> int:
    """Make the user and its group, and return the group's id. Raises Refused when the name is somebody else's."""
    if not exists():
        commands.run(
            *("useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"),
            *("--shell", "/usr/sbin/nologin", "--comment", COMMENT, NAME),
        )
    found = group_id(NAME)
    if found is None or pwd.getpwnam(NAME).pw_gecos != COMMENT:
        raise Refused(f"The host has a user {NAME} that is not Blockferry's.", "Rename or remove that user.")
    return found


def exists() -> bool:
    try:
        pwd.getpwnam(NAME)
    except KeyError:
        return False
    return True


def remove() -> bool:
    """Delete the user, if it is ours, and its group; False when there was none."""
    if not exists() or pwd.getpwnam(NAME).pw_gecos != COMMENT:
        return False
    commands.run("userdel", NAME)
    if group_id(NAME) is not None:
        commands.run("groupdel", NAME)
    return True


def socket_groups() -> list[str]:
    """Return those of the groups that this host has."""
    return [name for name in SOCKET_GROUPS if group_id(name) is not None]


def group_id(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None
