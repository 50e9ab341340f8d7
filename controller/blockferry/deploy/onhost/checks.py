"""
What a backup needs on a host, thing by thing: what is seen from the host itself.

A finding is {"name", "state", "what", "hint"}; its state is "ok", "warning" (a backup works, but), "failure" (it does
not), or "unknown". Nothing is changed. Sockets, owners and modes are vdsm's and Image I/O's (ovirt-facts,
"owner:group mode").
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from blockferry.deploy.onhost import commands, firewall, unit, user
from blockferry.deploy.onhost.deployment import Deployment
from blockferry.deploy.onhost.refusal import Refused

MiB = 1 << 20

NEEDED_SPACE = 200 * MiB
"""Two releases with their bundles, and a log."""


def run(deployment: Deployment, config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Look at everything. config, settings: what would be deployed. The host's time comes along, in seconds."""
    findings = [
        _python(),
        *_service(deployment),
        *_directory(deployment),
        _space(deployment.home),
        *_groups(),
        _control_socket(Path(config["control_socket"]), deployment),
        _data_socket(config["data_socket"]),
        *(_nbd_directory(Path(path), deployment) for path in config["nbd_directories"]),
        *_ports(deployment, config),
        *_firewall(config, settings),
        _selinux(),
        *_versions(),
    ]
    return {"findings": findings, "time": time.time()}


def finding(name: str, state: str, what: str, hint: str = "") -> dict[str, str]:
    return {"name": name, "state": state, "what": what, "hint": hint}


def _python() -> dict[str, str]:
    return finding("Python", "ok", f"{platform.python_version()}, {platform.libc_ver()[1] or '?'} as its glibc")


def _service(deployment: Deployment) -> Iterator[dict[str, str]]:
    if deployment.supervisor.kind == "systemd":
        yield finding("service manager", "ok", "systemd runs the agent, under its own user")
    else:
        yield finding(
            "service manager",
            "warning",
            "the agent runs as a process of the user who logs in, and does not come back after a restart",
            "Where the host has systemd, log in as root, or as a user with sudo.",
        )
    state = deployment.inspect()["state"]
    yield finding(
        "agent",
        "failure" if state == "failed" else "ok",
        {"serving": "it serves", "stopped": "it is stopped", "absent": "none is deployed"}.get(state, "it fails"),
        "See `blockferry agent logs`, then deploy it again." if state == "failed" else "",
    )


def _directory(deployment: Deployment) -> Iterator[dict[str, str]]:
    home = deployment.home
    if not home.parent.is_dir():
        yield finding(
            "directory", "failure", f"{home.parent} is missing", "Make it, or choose another agent.directory."
        )
    elif not os.access(home.parent, os.W_OK):
        yield finding(
            "directory", "failure", f"{home.parent} cannot be written", "Log in as root, or as a user with sudo."
        )
    else:
        yield finding("directory", "ok", f"{home}")


def _space(home: Path) -> dict[str, str]:
    place = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(place).free
    what = f"{free // MiB} MiB free in {place}"
    if free < NEEDED_SPACE:
        return finding(
            "space", "failure", what, f"Make {NEEDED_SPACE // MiB} MiB of room, or choose another directory."
        )
    return finding("space", "ok", what)


def _groups() -> Iterator[dict[str, str]]:
    for name in user.SOCKET_GROUPS:
        if user.group_id(name) is None:
            hint = "Without it the agent cannot open the sockets that belong to it: is this a host of oVirt?"
            yield finding(f"group {name}", "warning", "the host has none", hint)
        else:
            yield finding(f"group {name}", "ok", "it exists")


def _control_socket(path: Path, deployment: Deployment) -> dict[str, str]:
    name = "Image I/O's control socket"
    hint = "Start ovirt-imageio (systemctl start ovirt-imageio), or set agent.control_socket."
    try:
        found = path.stat()
    except OSError as error:
        return finding(name, "failure", f"{path}: {error.strerror}", hint)
    if not stat.S_ISSOCK(found.st_mode):
        return finding(name, "failure", f"{path} is no socket", hint)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        try:
            client.connect(str(path))
        except OSError as error:
            return finding(name, "failure", f"{path} does not answer: {error.strerror or error}", hint)
    if deployment.supervisor.kind == "systemd" and not _may(found, stat.S_IWGRP, stat.S_IWOTH):
        hint = "Its group must be one of kvm, ovirtimg and qemu, and may write to it."
        return finding(name, "failure", f"{path} cannot be opened by the agent's groups", hint)
    return finding(name, "ok", f"{path} answers")


def _data_socket(address: str) -> dict[str, str]:
    name = "Image I/O's data socket"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        try:
            client.connect("\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            hint = "Tickets of long readings run out without it: set agent.data_socket, or [local] in Image I/O."
            return finding(name, "failure", f"{address} does not answer: {error.strerror or error}", hint)
    return finding(name, "ok", f"{address} answers")


def _nbd_directory(path: Path, deployment: Deployment) -> dict[str, str]:
    name = f"sockets in {path}"
    try:
        found = path.stat()
    except FileNotFoundError:
        # vdsm makes it with the first backup, on some versions.
        return finding(name, "warning", "the directory is missing", "vdsm makes it: is vdsmd running?")
    if deployment.supervisor.kind == "systemd" and not _may(found, stat.S_IXGRP, stat.S_IXOTH):
        return finding(name, "failure", "the agent's groups may not enter it", "It belongs to vdsm:kvm, 0770.")
    return finding(name, "ok", "the agent may enter it")


def _ports(deployment: Deployment, config: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Each port must be free, or the agent's own."""
    if deployment.supervisor.pid() is not None:
        yield finding("ports", "ok", "the agent has them")
        return
    for address in config["listen"]:
        host, _, port = address.rpartition(":")
        if address.startswith("unix:"):
            continue
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host.strip("[]"), int(port)))
            except OSError as error:
                hint = "Choose another agent.port, or end what listens there (ss -ltnp)."
                yield finding(f"port {port}", "failure", f"{address}: {error.strerror}", hint)
            else:
                yield finding(f"port {port}", "ok", "it is free")


def _firewall(config: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    ports = ", ".join(unit.tcp_ports(config))
    if not ports:
        return
    with contextlib.suppress(Refused):
        if not firewall.is_running():
            yield finding("firewall", "ok", "firewalld does not run; another firewall must let " + ports + " through")
        elif settings["firewall"]:
            yield finding("firewall", "ok", f"firewalld runs; deploying lets {ports} through")
        else:
            hint = "Let them through, or set agent.firewall = true."
            yield finding("firewall", "warning", f"firewalld runs, and {ports} are yours to open", hint)
        return
    yield finding("firewall", "unknown", "firewall-cmd does not answer")


def _selinux() -> dict[str, str]:
    try:
        enforcing = Path("/sys/fs/selinux/enforce").read_text().strip() == "1"
    except OSError:
        return finding("SELinux", "ok", "it is off")
    if not enforcing:
        return finding("SELinux", "ok", "it is permissive")
    hint = "If the agent cannot open a socket, look for denials: ausearch -m avc -c python3"
    return finding("SELinux", "warning", "it is enforcing; the agent was never tried with it", hint)


def _versions() -> Iterator[dict[str, str]]:
    for name, command in (
        ("systemd", ("systemctl", "--version")),
        ("qemu-nbd", ("qemu-nbd", "--version")),
        ("vdsm", ("rpm", "-q", "vdsm")),
        ("ovirt-imageio", ("rpm", "-q", "ovirt-imageio-daemon")),
    ):
        try:
            output = commands.call(*command)
        except Refused:
            continue
        lines = output.stdout.splitlines()
        if output.status == 0 and lines:
            yield finding(f"version of {name}", "ok", lines[0][:80])


def _may(found: os.stat_result, group: int, others: int) -> bool:
    """Say whether the agent's user has a right, by his groups or by everybody's."""
    groups = {user.group_id(name) for name in user.SOCKET_GROUPS}
    return bool(found.st_mode & others) or (bool(found.st_mode & group) and found.st_gid in groups)
