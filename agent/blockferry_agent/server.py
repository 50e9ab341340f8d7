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

from blockferry_agent import notify, service, wire
from blockferry_agent.blocks import MAX_WINDOW
from blockferry_agent.callers import Callers
from blockferry_agent.config import UNIX_PREFIX, Config, ConfigError
from blockferry_agent.disks import Disks
from blockferry_agent.gate import Gate
from blockferry_agent.health import Health
from blockferry_agent.imageio import Imageio
from blockferry_agent.keepalive import KeepAlive
from blockferry_agent.netcat import Netcat
from blockferry_agent.throttle import Throttle
from blockferry_agent.tls import Certificates
from blockferry_agent.units import KiB, MiB

log = logging.getLogger(__name__)

GRACE = 2.0
"""Seconds that running calls have to end by themselves when the agent stops."""

_SPARE_THREADS = 8
"""Threads beside those that read or wait for it, so that short calls are answered while all reads are taken."""

_WATCHERS = 16
"""Calls beyond those that have a thread: of the health service, which need none."""

MAX_CONNECTIONS = 512
"""
Connections at once. A controller has one for each disk that it reads or waits for, so this is for dozens of them; each
takes a file of the 1024 that a process may have open.
"""

HANDSHAKE_SECONDS = 10
"""Who connects and says nothing for so long is sent away; gRPC would give him two minutes."""

_OPTIONS = [
    ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
    # Two agents on one port would share its connections.
    ("grpc.so_reuseport", 0),
    # A block of the largest window, with its head.
    ("grpc.max_receive_message_length", MAX_WINDOW + 64 * KiB),
    # What may come in of a stream of blocks before it is wanted. gRPC would measure how much keeps the link busy, and
    # take in up to that beside the message in hand: a writing with windows of 8 MiB had 170 MiB resident instead of
    # 128, at the same speed.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 4 * MiB),
    *wire.LARGE_MESSAGES,
    # A controller that vanished without a word is noticed within a minute, and ours may look after us as often.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),  # else 60 s, which come first when data was sent
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
]


def run(config: Config, wait: Callable[[Callable[[], bool]], object]) -> None:
    """
    Serve until `wait` returns.

    wait: is given a function that lets nobody read any more, unless somebody does, and returns whether it did so.

    Raises ConfigError when an address or a file of the configuration cannot be used.
    """
    certificates = None if config.tls is None else Certificates(config.tls)
    callers = Callers(certificates)
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
        certificates,
        config.clear_text,
    )
    calls = 2 * config.max_reads + _SPARE_THREADS
    threads = concurrent.futures.ThreadPoolExecutor(calls, thread_name_prefix="call")
    server = grpc.server(threads, options=_OPTIONS, maximum_concurrent_rpcs=calls + _WATCHERS)
    service.serve(service.Service(disks, gate, netcat, imageio, callers, certificates), server)
    health = Health(callers)
    health.serve(server)
    for address in config.listen:
        _listen(server, address, config.socket_mode, certificates)
    server.start()
    try:
        with _pid_file(config.pid_file):
            log.info("serving at %s", ", ".join(config.listen))
            notify.tell(notify.READY)
            wait(gate.close_if_idle)
            log.info("stopping")
    finally:
        notify.tell(notify.STOPPING)
        health.stop()
        gate.close()
        netcat.close()
        server.stop(GRACE).wait()


def _listen(server: grpc.Server, address: str, socket_mode: int, certificates: Certificates | None) -> None:
    try:
        if address.startswith(UNIX_PREFIX):
            before = os.umask(0o777 & ~socket_mode)
            try:
                server.add_insecure_port(address)
            finally:
                os.umask(before)
        else:
            assert certificates is not None
            server.add_secure_port(address, certificates.server_credentials())
    except RuntimeError:
        raise ConfigError(
            f"The agent cannot listen at {address}.",
            "See whether something else listens there, and whether that address is this host's.",
        ) from None


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
