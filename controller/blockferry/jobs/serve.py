"""Serving the disks of a recovery point over NBD, before anything is copied."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import msgspec

from blockferry import errors
from blockferry.jobs import selection
from blockferry.repository import Manifest, Repository
from blockferry.serving import tls
from blockferry.serving.content import ChunkCache, PointDisk
from blockferry.serving.export import Disk, Export, Exports
from blockferry.serving.overlay import Overlay
from blockferry.serving.server import Server


class UnixSocket(NamedTuple):
    """A unix socket that only its owner may use. path: None for one in a directory of its own, which goes with it."""

    path: Path | None


class TcpPort(NamedTuple):
    """
    A TCP port.

    port: 0 for a free one.  tls_directory: of the server's certificates; None for clear text.
    """

    host: str
    port: int
    tls_directory: Path | None


class Served(msgspec.Struct, frozen=True):
    """
    A disk that is served.

    export: its name there.  size: bytes.  writable: clients may write, to an overlay.  uri: for clients.
    """

    disk_id: str
    alias: str
    export: str
    size: int
    writable: bool
    uri: str


class _Listening(NamedTuple):
    """A socket that listens. prefix, suffix: of URIs, around the export's name."""

    socket: socket.socket
    prefix: str
    suffix: str
    tls: ssl.SSLContext | None


@contextlib.contextmanager
def serving(
    repository: Repository,
    point: Manifest,
    disks: Sequence[str],
    place: UnixSocket | TcpPort,
    overlay: Path | None,
    cache: int,
    ahead: int,
    note: Callable[[errors.Error], None] = lambda error: None,
) -> Iterator[list[Served]]:
    """
    Serve disks of a recovery point until the block ends.

    disks: ids or aliases, empty for all.  overlay: directory for what clients write, None for read-only.
    cache, ahead: bytes of chunks that are kept, and that are fetched ahead of sequential reads.
    note: told, by any thread, of each read that fails.

    Raises NotFound, Ambiguous, ConfigError, Conflict, RestoreError, Damaged, RepositoryError.
    """
    chosen = selection.disks(point.disks, disks, f"Recovery point {point.id}")
    if not chosen:
        raise errors.NotFound(f"Recovery point {point.id} has no disks.")
    aliases = [disk.alias for disk in chosen]
    with contextlib.ExitStack() as stack:
        stack.enter_context(repository.reading(f"serve of point {point.id} of VM {point.vm.name}"))
        chunks = stack.enter_context(ChunkCache(cache))
        exports: list[Export] = []
        for disk in chosen:
            content: Disk = PointDisk(repository.disk(point, disk.id), chunks, ahead, note)
            if overlay is not None:
                content = stack.enter_context(_overlay(content, overlay))
            name = disk.alias if aliases.count(disk.alias) == 1 else disk.id
            exports.append(Export(name, content, frozenset([disk.id])))
        listening = stack.enter_context(_listening(place))
        stack.enter_context(Server(listening.socket, Exports(exports), listening.tls))
        yield [
            Served(
                disk_id=disk.id,
                alias=disk.alias,
                export=export.name,
                size=disk.size,
                writable=overlay is not None,
                uri=f"{listening.prefix}{quote(export.name, safe='')}{listening.suffix}",
            )
            for disk, export in zip(chosen, exports, strict=True)
        ]


def _overlay(disk: Disk, directory: Path) -> Overlay:
    """Raises RestoreError."""
    try:
        return Overlay(disk, directory)
    except OSError as error:
        raise errors.RestoreError(
            f"An overlay cannot be made in {directory}: {error.strerror or error}.", "Name another directory."
        ) from None


def _listening(place: UnixSocket | TcpPort) -> AbstractContextManager[_Listening]:
    return _unix(place) if isinstance(place, UnixSocket) else _tcp(place)


@contextlib.contextmanager
def _unix(place: UnixSocket) -> Iterator[_Listening]:
    with contextlib.ExitStack() as stack:
        path = place.path
        if path is None:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="blockferry-serve-"))) / "nbd.sock"
        listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        with _errors_of(str(path)):
            _clear(path)
            # The rights are made before the name can be seen; nobody connects before `listen`.
            os.fchmod(listening.fileno(), 0o600)
            listening.bind(str(path))
            stack.callback(path.unlink, missing_ok=True)
            listening.listen()
        yield _Listening(listening, "nbd+unix:///", f"?socket={quote(str(path.absolute()))}", None)


def _clear(path: Path) -> None:
    """Remove the socket of a server that was killed. Raises Conflict when something listens there, OSError."""
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise errors.Conflict(f"Something serves at {path} already.", "Choose another --socket.")


@contextlib.contextmanager
def _tcp(place: TcpPort) -> Iterator[_Listening]:
    context = None if place.tls_directory is None else tls.server_context(place.tls_directory)
    with contextlib.ExitStack() as stack:
        with _errors_of(f"{place.host}:{place.port}"):
            family, kind, protocol, _, address = socket.getaddrinfo(
                place.host, place.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listening = stack.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen()
        host = f"[{place.host}]" if ":" in place.host else place.host
        scheme = "nbd" if context is None else "nbds"
        yield _Listening(listening, f"{scheme}://{host}:{listening.getsockname()[1]}/", "", context)


@contextlib.contextmanager
def _errors_of(place: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.RestoreError(
            f"Nothing can be served at {place}: {error.strerror or error}.", "Choose another address or socket."
        ) from None
