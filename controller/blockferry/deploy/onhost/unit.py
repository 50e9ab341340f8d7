"""
The units of systemd that run the agent: the service itself, and the trial of a release before it comes into force.

Keys that a host's systemd does not know it leaves out with a warning (systemd.syntax(7)), so one text serves all; only
what an older one would misunderstand depends on its version.
"""

from __future__ import annotations

import grp
import pwd
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blockferry.deploy.onhost import user
from blockferry.deploy.onhost.refusal import Refused
from blockferry.deploy.onhost.releases import Release

SERVICE = "blockferry-agent"
TRIAL = "blockferry-agent-trial"

BINDS_SINCE = 249
"""The first systemd that can keep a unit to its ports (SocketBindDeny=)."""

START_TIMEOUT = 30
STOP_TIMEOUT = 15

SANDBOX = """\
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
LockPersonality=yes
MemoryDenyWriteExecute=yes
RemoveIPC=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
InaccessiblePaths=-/run/libvirt -/run/dbus
UMask=0077
"""


def socket(name: str) -> str:
    """Return the path of the Unix socket of the agent that a unit runs."""
    return str(runtime_directory(name) / "agent.sock")


def runtime_directory(name: str) -> Path:
    return Path("/run") / name


def service(release: Release, version: int) -> str:
    """Return the text of the unit for a release. version: of the host's systemd."""
    return (
        _head(release, "Blockferry agent")
        + _process(release, SERVICE, release.config_file)
        # Who ends it in order wants it ended: an upgrade, an operator.
        + "Restart=on-failure\nRestartSec=1\n"
        + _lend_socket(release.settings["ssh_user"])
        + _sandbox(release, version)
        + "\n[Install]\nWantedBy=multi-user.target\n"
    )


def trial(release: Release, version: int, config: Path) -> str:
    """Return the text of the unit in which a release is tried out, by a configuration with a private socket alone."""
    return (
        _head(release, "Blockferry agent, on trial")
        + _process(release, TRIAL, config)
        + "Restart=no\n"
        + _sandbox(release, version)
    )


def is_of(text: str, home: Path) -> bool:
    """Say whether a unit was made for the agent in `home`."""
    return text.startswith(_mark(home))


def tcp_ports(config: Mapping[str, Any]) -> list[str]:
    """Return the ports that an agent's configuration names: "54330", "54331-54340"."""
    ports = [address.rpartition(":")[2] for address in config["listen"] if not address.startswith("unix:")]
    if "socket_ports" in config:
        first, last = config["socket_ports"]
        ports.append(f"{first}-{last}")
    return ports


def _mark(home: Path) -> str:
    return f"# Made by Blockferry for the agent in {home}, which `blockferry agent remove` takes away.\n"


def _head(release: Release, description: str) -> str:
    return (
        _mark(release.home)
        + f"[Unit]\nDescription={description}\nDocumentation=https://github.com/blockferry/blockferry\n"
        + "Wants=network-online.target\nAfter=network-online.target ovirt-imageio.service\n"
        # However often it fails: a host whose Image I/O comes late must get its agent all the same.
        + "StartLimitIntervalSec=0\n\n"
    )


def _process(release: Release, name: str, config: Path) -> str:
    groups = " ".join(user.socket_groups())
    return (
        "[Service]\nType=notify\n"
        + f"ExecStart={' '.join(map(_quoted, release.command(config)))}\n"
        # Else gRPC prints a line for each handshake that fails: strangers could fill the journal.
        + "Environment=GRPC_VERBOSITY=NONE PYTHONDONTWRITEBYTECODE=1\n"
        + f"User={user.NAME}\nGroup={user.NAME}\n"
        + (f"SupplementaryGroups={groups}\n" if groups else "")
        + f"RuntimeDirectory={name}\nRuntimeDirectoryMode=0755\n"
        + f"TimeoutStartSec={START_TIMEOUT}\nTimeoutStopSec={STOP_TIMEOUT}\n"
    )


def _lend_socket(ssh_user: str) -> str:
    """Give the socket to the group of the user as whom the controller's SSH comes; root needs none."""
    if ssh_user == "root":
        return ""
    try:
        group = grp.getgrgid(pwd.getpwnam(ssh_user).pw_gid).gr_name
    except KeyError:
        raise Refused(f"The host has no user {ssh_user}, as whom SSH came.") from None
    return f"ExecStartPost=+/bin/chgrp {_quoted(group)} {socket(SERVICE)}\n"


def _sandbox(release: Release, version: int) -> str:
    settings = release.settings
    text = SANDBOX + f"MemoryMax={settings['memory']}\nTasksMax=512\nLimitNOFILE=4096\n"
    text += f"CPUWeight={settings['cpu_weight']}\nIOWeight={settings['io_weight']}\n"
    if version >= BINDS_SINCE:
        text += "".join(f"SocketBindAllow=tcp:{ports}\n" for ports in tcp_ports(release.config))
        text += "SocketBindDeny=any\n"
    return text


def _quoted(word: str) -> str:
    """Quote a word of a command line, in which % and $ mean something."""
    if any(character in word for character in "\n\"'\\;"):
        raise Refused(f"{word} cannot stand in a unit of systemd.", "Choose another agent.directory or agent.python.")
    return shlex.quote(word.replace("%", "%%").replace("$", "$$"))
