"""The agent's directory on a host, as seen from the controller: `onhost` does the work there, this asks for it."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import posixpath
import threading
import time
import zipfile
from collections.abc import Mapping
from datetime import datetime
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import msgspec

from blockferry import errors
from blockferry_agent.units import MiB

if TYPE_CHECKING:
    from blockferry.deploy.ssh import Connection

_TIMEOUT = 240.0
"""Seconds: a trial, stopping the old agent, starting the new one, and the old one again when that fails."""

_CLOCK_TOLERANCE = 30
_CLOCK_LIMIT = 24 * 3600
"""Seconds by which clocks may differ: without a word, and at all (certificates begin to be good a day before)."""

# Takes from its input: the length of a zip, the zip, then the files that the request names. Ends by
# itself when nothing comes for a minute, else a link that is cut would leave it waiting for ever.
_LOADER = """\
import json, os, select, sys

def take(length):
    taken = bytearray()
    while len(taken) < length:
        if not select.select([0], [], [], 60)[0]:
            sys.exit("no input came for 60 seconds")
        part = os.read(0, min(length - len(taken), 1 << 20))
        if not part:
            sys.exit("the input broke off")
        taken += part
    return bytes(taken)

request = json.loads(sys.argv[1])
program = os.memfd_create("onhost")
with open(program, "wb", closefd=False) as file:
    file.write(take(int(take(12))))
files = {name: take(length) for name, length in request.pop("files").items()}
sys.dont_write_bytecode = True
sys.path.insert(0, "/proc/self/fd/%d" % program)
from blockferry.deploy.onhost import main
print(json.dumps(main.answer(request, files)))
"""


class ServiceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """
    How the agent's service is run, where systemd runs it.

    memory: bytes that it may have.  cpu_weight, io_weight: against other services, 1 to 10000; 100 is usual.
    firewall: open its ports in firewalld.  ssh_user: as whom the controller's SSH comes: he may open its socket.
    """

    memory: int = 512 * MiB
    cpu_weight: int = 50
    io_weight: int = 50
    firewall: bool = True
    ssh_user: str = "root"


class About(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a release says of itself.

    bundle: digest.  version: of the agent.  python: path of the host's Python.  python_version: "3.9.18".
    deployed: in UTC.
    """

    bundle: str
    version: str
    python: str
    python_version: str
    deployed: datetime


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment. config: agent.json.  certificate: the agent's, PEM."""

    about: About
    settings: ServiceSettings
    config: dict[str, Any]
    certificate: str


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is on a host.

    supervisor: what runs the agent, or would.  socket: path of the agent's Unix socket.  bundles: digests.
    current, previous: releases: the one in force, and the one to which `rollback` goes back.
    state: of the agent.  pid: of its process while it serves.
    """

    supervisor: Literal["systemd", "process"]
    socket: str
    bundles: frozenset[str]
    current: Release | None
    previous: Release | None
    state: Literal["serving", "stopped", "failed", "absent"]
    pid: int | None


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """
    One thing that a backup needs, and how it is.

    state: "warning": a backup works, but.  hint: what to do; empty when there is nothing.
    """

    name: str
    state: Literal["ok", "warning", "failure", "unknown"]
    what: str
    hint: str = ""


class Credentials(NamedTuple):
    """
    What the agent shows, and whom it believes.

    certificate, key: its own, PEM.  authority: PEM, one or two.  revoked: JSON, controllers' certificates.
    """

    certificate: bytes
    key: bytes
    authority: bytes
    revoked: bytes

    def files(self) -> dict[str, bytes]:
        """Return them by the names that they have in a release."""
        return {
            "agent.crt": self.certificate,
            "agent.key": self.key,
            "ca.crt": self.authority,
            "revoked.json": self.revoked,
        }


class ReleaseFiles(NamedTuple):
    """What a new release is made of. config: of agent.json.  bundle: tar.gz; None when the host has it."""

    about: About
    config: dict[str, Any]
    credentials: Credentials
    bundle: bytes | None


class Reading(errors.Conflict):
    """The agent reads a disk, and was to be left alone then."""


class _Checked(msgspec.Struct, frozen=True, kw_only=True):
    findings: list[Finding]
    time: float


_Kind = TypeVar("_Kind")
# See `repository.documents` for what happens when several threads begin to convert to a type at once.
_converting = threading.Lock()


class AgentDirectory:
    """
    The agent's directory on one host.

    python: path of the host's Python.  Every method raises DeployError, and Conflict while somebody else changes it.
    """

    def __init__(self, connection: Connection, python: str, path: str) -> None:
        if not posixpath.isabs(path):
            raise errors.DeployError(f"{path} cannot be the agent's directory: it is no absolute path.")
        self.path = path
        self._connection = connection
        self._python = python

    def inspect(self) -> Found:
        """Say what is there, and change nothing. A directory that is not ours counts as empty."""
        return self._convert(self._ask("inspect"), Found)

    def check(self, config: Mapping[str, Any], settings: ServiceSettings) -> list[Finding]:
        """Look at everything that a backup needs and that can be seen on the host. config: what would be deployed."""
        began = time.time()
        answer = self._convert(self._ask("check", config=config, settings=msgspec.to_builtins(settings)), _Checked)
        return [*answer.findings, _clock(answer.time - (began + time.time()) / 2)]

    def install(self, release: ReleaseFiles, settings: ServiceSettings, when_idle: bool) -> None:
        """
        Put a new release in force; returns when its agent serves.

        It is tried out beside the agent that runs; when it does not come to serve, nothing changes. when_idle: raise
        Reading while the agent that runs reads a disk.
        """
        name, files = contents(release, settings)
        self._ask("install", files, name=name, when_idle=when_idle)

    def rollback(self, when_idle: bool) -> Release:
        """Put the previous release in force, with the credentials of the current one, and return it."""
        return self._convert(self._ask("rollback", when_idle=when_idle), Release)

    def renew(self, credentials: Credentials) -> None:
        """Give the release in force other credentials, without a restart."""
        self._ask("renew", credentials.files())

    def logs(self, lines: int) -> str:
        """Return the last lines of what the agent said."""
        return str(self._ask("logs", lines=lines))

    def remove(self) -> bool:
        """Stop the agent and take away all that was made for it on the host. False when there was nothing."""
        return bool(self._ask("remove"))

    def _ask(self, do: str, files: Mapping[str, bytes] | None = None, **arguments: object) -> object:
        """Send a request with its files, and return the answer."""
        sent = dict(files or {})
        lengths = {name: len(data) for name, data in sent.items()}
        request = json.dumps({"do": do, "directory": self.path, "files": lengths, **arguments})
        packed = _program()
        stdin = b"".join([f"{len(packed):12d}".encode(), packed, *sent.values()])
        output = self._connection.run([self._python, "-I", "-S", "-c", _LOADER, request], stdin, timeout=_TIMEOUT)
        try:
            # A login shell may print things of its own before.
            answer = json.loads(output.splitlines()[-1])
            if "done" in answer:
                return answer["done"]
            message, hint, kind = f"{self._connection.where}: {answer['refused']}", answer["hint"], answer["kind"]
        except (LookupError, ValueError, TypeError) as error:
            raise errors.DeployError(
                f"{self._python} on {self._connection.where} printed something else than expected.",
                "See what the login shell's profile prints there.",
            ) from error
        if kind == "reading":
            raise Reading(message, hint)
        raise errors.Conflict(message, hint) if kind == "busy" else errors.DeployError(message, hint)

    def _convert(self, answer: object, kind: type[_Kind]) -> _Kind:
        try:
            with _converting:
                return msgspec.convert(answer, kind)
        except msgspec.ValidationError as error:
            raise errors.DeployError(
                f"{self.path} on {self._connection.where} was written by another version of Blockferry.",
                "Deploy with that version, or remove the agent with it first.",
            ) from error


def contents(release: ReleaseFiles, settings: ServiceSettings) -> tuple[str, dict[str, bytes]]:
    """Return the name and the files of a new release, as a host gets them."""
    files = {
        "release.json": _json(release.about),
        "settings.json": _json(settings),
        "agent.json": _json(release.config),
        **release.credentials.files(),
    }
    name = _release_name(release.about.deployed, files)
    if release.bundle is not None:
        files["bundle.tar.gz"] = release.bundle
    return name, files


def program() -> dict[str, bytes]:
    """Return what runs on a host: `onhost`, in packages that hold nothing else."""
    root = resources.files("blockferry.deploy") / "onhost"
    modules = {path.name: path.read_bytes() for path in root.iterdir() if path.name.endswith(".py")}
    return {
        "blockferry/__init__.py": b"",
        "blockferry/deploy/__init__.py": b"",
        **{f"blockferry/deploy/onhost/{name}": data for name, data in sorted(modules.items())},
    }


@functools.lru_cache(maxsize=1)
def _program() -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as zipped:
        for name, data in program().items():
            zipped.writestr(name, data)
    return archive.getvalue()


def _release_name(deployed: datetime, files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256(b"".join(files[name] for name in sorted(files))).hexdigest()
    return f"{deployed:%Y%m%dT%H%M%SZ}-{digest[:8]}"


def _clock(ahead: float) -> Finding:
    """Say how a host's clock stands to ours. ahead: seconds."""
    what = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    if abs(ahead) <= _CLOCK_TOLERANCE:
        return Finding(name="clock", state="ok", what=what)
    state: Literal["warning", "failure"] = "warning" if abs(ahead) < _CLOCK_LIMIT else "failure"
    hint = "Certificates are good for a time: set it (chronyc makestep), here or there."
    return Finding(name="clock", state=state, what=what, hint=hint)


def _json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=4) + b"\n"
