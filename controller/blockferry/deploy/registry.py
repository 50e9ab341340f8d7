"""
What the controller knows about the agents that it deployed: one file for each host.

    <state>/agents/<host id>.json
"""

import logging
import re
from datetime import datetime
from pathlib import Path

import msgspec

from blockferry import errors, files
from blockferry.deploy import faults

_log = logging.getLogger(__name__)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """
    An agent that was deployed.

    host_id, host_name, address: of the engine's host.
    port: where the agent listens; 0: at no TCP port.  server_name: the name in its certificate, whatever the address.
    socket: path of the agent's Unix socket on the host; empty for an agent from before there was one.
    ssh_port, ssh_user, host_key: how SSH led there, and the host's key ("ssh-ed25519 AAAA…") that was pinned then.
    kind: of the host (`interpreter.Kind`); empty for an agent from before it was noted.
    directory: on the host.  python: the version that runs it.  version: of the agent.  bundle: digest of its archive.
    deployed, certificate_expires: in UTC.
    """

    host_id: str
    host_name: str
    address: str
    port: int
    server_name: str
    socket: str = ""
    ssh_port: int = 22
    ssh_user: str = ""
    host_key: str = ""
    kind: str = ""
    directory: str
    python: str
    version: str
    bundle: str
    deployed: datetime
    certificate_expires: datetime


# Made here, by one thread: see `repository.documents` for what happens when several begin to decode a type at once.
_DECODER = msgspec.json.Decoder(Record)


class Registry:
    """The records of one controller. Every change is complete or did not happen."""

    def __init__(self, state: Path) -> None:
        self._directory = state / "agents"

    def records(self) -> list[Record]:
        """Return all records that can be read, by the hosts' names; the log names the others."""
        records = [self._read(path) for path in self._directory.glob("[!.]*.json")]
        return sorted((record for record in records if record), key=lambda record: (record.host_name, record.host_id))

    def find(self, host: str) -> Record:
        """Return the record of a host by its id, name or address. Raises NotFound, Ambiguous."""
        records = self.records()
        for fits in (
            [record for record in records if record.host_id == host],
            [record for record in records if host in (record.host_name, record.address)],
        ):
            if len(fits) > 1:
                ids = ", ".join(record.host_id for record in fits)
                raise errors.Ambiguous(
                    f"Several hosts are called {host}: {ids}.",
                    "Use the id. `blockferry agent remove --forget ID` forgets one that is gone.",
                )
            if fits:
                return fits[0]
        raise errors.NotFound(f"No agent was deployed on host {host}.", "See `blockferry agent deploy --help`.")

    def put(self, record: Record) -> None:
        """
        Remember a record in place of what was known about its host. Raises DeployError.

        A host that the engine took in anew has a new id: where this agent listens, no other does any more.
        """
        path = self._path(record.host_id)
        with faults.writing(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.replace(path, msgspec.json.format(msgspec.json.encode(record), indent=4) + b"\n")
        for other in self.records():
            if other.host_id != record.host_id and _place(other) == _place(record):
                self.forget(other.host_id)

    def forget(self, host_id: str) -> None:
        """Forget a host; one that is not known is ignored. Raises DeployError."""
        path = self._path(host_id)
        with faults.writing(path):
            path.unlink(missing_ok=True)

    def _path(self, host_id: str) -> Path:
        """Return a record's file. A host id is a name here, never a path."""
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}", host_id):
            raise errors.DeployError(f"{host_id!r} cannot be the id of a host.")
        return self._directory / f"{host_id}.json"

    def _read(self, path: Path) -> Record | None:
        try:
            return _DECODER.decode(path.read_bytes())
        except FileNotFoundError:
            return None  # forgotten just now
        except (OSError, msgspec.MsgspecError) as error:
            # One bad file must not keep the agents of all other hosts from being used.
            _log.warning("%s cannot be read: %s. Remove it, then deploy the agent on that host again.", path, error)
            return None


def _place(record: Record) -> tuple[str, int, str]:
    """Return what no two agents have in common: the TCP port, or where there is none the socket behind sshd's port."""
    return (record.address, record.port, "") if record.port else (record.address, record.ssh_port, record.socket)
