"""The agent's process: its service behind the addresses of its configuration, from start to stop."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import grpc

from blockferry_agent import service, tls, wire
from blockferry_agent.config import UNIX_PREFIX, Config, ConfigError, Tls
from blockferry_agent.disks import Disks
from blockferry_agent.gate import Gate
from blockferry_agent.imageio import Imageio
from blockferry_agent.keepalive import KeepAlive
from blockferry_agent.netcat import Netcat
from blockferry_agent.throttle import Throttle

log = logging.getLogger(__name__)

GRACE = 2.0
"""Seconds that running calls have to end by themselves when the agent stops."""

_SPARE_THREADS = 8
"""Threads beside those that read or wait for it, so that short calls are answered while all reads are taken."""

_OPTIONS = [
    # Two agents on one port would share its connections.
    ("grpc.so_reuseport", 0),
    *wire.LARGE_MESSAGES,
    # A controller that vanished without a word is noticed within a minute, and ours may look after us as often.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),  # else 60 s, which come first when data was sent
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
]


def run(config: Config, wait: Callable[[], object]) -> None:
    """
    Serve until `wait` returns.

    Raises ConfigError when an address or a file of the configuration cannot be used.
    """
    imageio = Imageio(config.control_socket, config.data_socket)
    gate = Gate(config.max_reads)
    keepalive = KeepAlive(imageio.touch, config.keepalive_seconds)
    throttle = Throttle(config.bytes_per_second)
    disks = Disks(imageio, keepalive, gate, config.nbd_directories, config.workers, throttle)
    netcat = Netcat(
        disks,
        config.max_reads,
        config.socket_addresses,
        config.socket_ports,
        tls.server_context(config.tls) if config.tls is not None and config.socket_ports else None,
        config.clear_text,
    )
    threads = concurrent.futures.ThreadPoolExecutor(2 * config.max_reads + _SPARE_THREADS, thread_name_prefix="call")
    server = grpc.server(threads, options=_OPTIONS)
    service.serve(service.Service(disks, gate, netcat, imageio), server)
    for address in config.listen:
        _listen(server, address, config.tls)
    server.start()
    try:
        with _pid_file(config.pid_file):
            log.info("serving at %s", ", ".join(config.listen))
            wait()
            log.info("stopping")
    finally:
        gate.close()
        netcat.close()
        server.stop(GRACE).wait()


def _listen(server: grpc.Server, address: str, files: Tls | None) -> None:
    try:
        if address.startswith(UNIX_PREFIX):
            before = os.umask(0o177)  # the socket is for this user alone
            try:
                server.add_insecure_port(address)
            finally:
                os.umask(before)
        else:
            assert files is not None
            server.add_secure_port(address, _credentials(files))
    except RuntimeError:
        raise ConfigError(
            f"The agent cannot listen at {address}.",
            "See whether something else listens there, whether that address is this host's, and whether the "
            "certificate and key are PEM files that belong together.",
        ) from None


def _credentials(files: Tls) -> grpc.ServerCredentials:
    try:
        key, certificate, ca = (path.read_bytes() for path in (files.key, files.certificate, files.ca))
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}.", "Deploy the agent again.") from None
    return grpc.ssl_server_credentials([(key, certificate)], root_certificates=ca, require_client_auth=True)


@contextlib.contextmanager
def _pid_file(path: Path | None) -> Iterator[None]:
    """Have the process's id in a file, which is complete as soon as it is there."""
    if path is None:
        yield
        return
    new = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        new.write_text(f"{os.getpid()}\n", encoding="ascii")
        new.replace(path)
    except OSError as error:
        raise ConfigError(f"The pid file {path} cannot be written: {error.strerror}.") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
