"""What the operator's own ssh_config says of the way to a host, as `ssh -G` tells it."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

from blockferry import errors

_TIMEOUT = 20


class Place(NamedTuple):
    """
    How ssh would reach a host.

    address, port: of its sshd.  name: by which known_hosts know it.  key_files: private keys that exist.
    known_hosts: files that exist.  proxy: a command that leads there; empty: TCP does.
    """

    address: str
    port: int
    name: str
    key_files: tuple[Path, ...]
    known_hosts: tuple[Path, ...]
    proxy: tuple[str, ...]


def look_up(address: str, port: int, user: str, config_file: Path | None = None) -> Place:
    """
    Ask ssh. port: as the engine has it; 22, which it says when it was told nothing, too, gives way to ssh_config.

    config_file: in place of ~/.ssh/config and /etc/ssh/ssh_config.  Raises ConfigError.
    """
    own = ["-F", str(config_file)] if config_file is not None else []
    asked = ["-p", str(port)] if port != 22 else []
    values = _ask(["ssh", "-G", *own, *asked, "-l", user, "--", address])
    host, found = _one(values, "hostname") or address, int(_one(values, "port") or port)
    return Place(
        address=host,
        port=found,
        name=_known_name(_one(values, "hostkeyalias") or host, found),
        key_files=_existing(values, "identityfile"),
        known_hosts=(*_existing(values, "userknownhostsfile"), *_existing(values, "globalknownhostsfile")),
        proxy=_proxy(values, own, host, found, user),
    )


def _ask(command: list[str]) -> dict[str, list[str]]:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise errors.ConfigError(f"The ssh program cannot be asked for its configuration: {error}.") from None
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise errors.ConfigError(f"ssh cannot use its configuration: {words[-1]}.", "Mend your ssh_config.")
    values: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        key, _, value = line.partition(" ")
        values.setdefault(key, []).append(value)
    return values


def _proxy(values: dict[str, list[str]], own: list[str], host: str, port: int, user: str) -> tuple[str, ...]:
    """Return the command that ssh itself would go through: its jump hosts are checked by your known_hosts."""
    jump, command = _one(values, "proxyjump"), _one(values, "proxycommand")
    if jump:
        *before, last = jump.split(",")
        through = ["-J", ",".join(before)] if before else []
        target = f"[{host}]:{port}"
        return ("ssh", *own, "-o", "BatchMode=yes", *through, "-W", target, "--", _destination(last))
    if command:
        said = command.replace("%h", host).replace("%p", str(port)).replace("%r", user).replace("%%", "%")
        return ("sh", "-c", f"exec {said}")
    return ()


def _destination(jump: str) -> str:
    """Return a jump host as a destination of ssh's command line, which takes a port as a URL only."""
    return jump if "://" in jump or ":" not in jump else f"ssh://{jump}"


def _one(values: dict[str, list[str]], key: str) -> str:
    """Return a value that was set; "none" is how ssh says that it was not."""
    value = values.get(key, [""])[0]
    return "" if value == "none" else value


def _existing(values: dict[str, list[str]], key: str) -> tuple[Path, ...]:
    """Return the files of a key that there are. Those of known_hosts stand in one line."""
    words = [
        word for value in values.get(key, []) for word in ([value] if key == "identityfile" else shlex.split(value))
    ]
    return tuple(path for path in (Path(word).expanduser() for word in words) if path.is_file())


def _known_name(host: str, port: int) -> str:
    return host if port == 22 else f"[{host}]:{port}"
