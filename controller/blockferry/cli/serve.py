"""`blockferry serve`: the disks of a recovery point over NBD."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from blockferry.cli import output
from blockferry.cli.points import POINT_HELP
from blockferry.cli.settings import Settings, common_options
from blockferry.jobs import catalog
from blockferry.jobs import serve as serve_job
from blockferry.jobs.serve import Served, TcpPort, UnixSocket
from blockferry_agent.units import MiB


@click.command(epilog=POINT_HELP)
@click.argument("vm")
@click.argument("point", default="latest")
@click.option("--disk", "disks", multiple=True, metavar="DISK", help="Serve only this disk (id or alias); repeatable.")
@click.option(
    "--socket",
    "path",
    type=click.Path(path_type=Path),
    help="Listen on this unix socket, for its owner only. Default: one in a temporary directory.",
)
@click.option("--listen", metavar="ADDRESS:PORT", help="Listen on TCP, with --tls-directory or --clear-text.")
@click.option(
    "--tls-directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Has ca-cert.pem, server-cert.pem and server-key.pem; clients need a certificate of the same authority.",
)
@click.option("--clear-text", is_flag=True, help="Listen on TCP without TLS: whoever reaches the port reads the disks.")
@click.option(
    "--overlay",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Let clients write, to a scratch file in this directory that is gone at the end; the point stays as it is.",
)
@click.option(
    "--cache", type=click.IntRange(min=1), default=256, show_default=True, metavar="MIB", help="Keep so much content."
)
@click.option(
    "--read-ahead",
    type=click.IntRange(min=0),
    default=16,
    show_default=True,
    metavar="MIB",
    help="Fetch so far ahead of clients that read on and on.",
)
@common_options
def serve(
    settings: Settings,
    vm: str,
    point: str,
    disks: tuple[str, ...],
    path: Path | None,
    listen: str | None,
    tls_directory: Path | None,
    clear_text: bool,
    overlay: Path | None,
    cache: int,
    read_ahead: int,
) -> None:
    """
    Serve the disks of a recovery point of VM over NBD, until Ctrl-C.

    What clients read is fetched and checked at that moment: nothing is copied before. QEMU, qemu-img, nbdcopy and
    guestfish are clients.
    """
    place = _place(path, listen, tls_directory, clear_text)
    repository = settings.site().repository()
    found = catalog.point(repository, vm, point)
    with serve_job.serving(repository, found, disks, place, overlay, cache * MiB, read_ahead * MiB) as exports:
        if settings.machine:
            # One line, so that who started us can read it while we run.
            click.echo(json.dumps(msgspec.to_builtins(exports)))
        else:
            _show(exports)
        # Ctrl-C is how this ends well.
        with contextlib.suppress(KeyboardInterrupt):
            _wait()


def _place(path: Path | None, listen: str | None, tls_directory: Path | None, clear_text: bool) -> UnixSocket | TcpPort:
    """Return where to listen. Raises UsageError."""
    if listen is None:
        if tls_directory is not None or clear_text:
            raise click.UsageError("--tls-directory and --clear-text belong to --listen.")
        return UnixSocket(path)
    if path is not None:
        raise click.UsageError("--socket and --listen exclude each other.")
    if (tls_directory is None) == (not clear_text):
        raise click.UsageError("--listen needs either --tls-directory, or --clear-text.")
    matched = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]+)):(\d{1,5})", listen)
    if matched is None or int(matched[3]) > 65535:
        raise click.BadParameter(f"'{listen}' is not ADDRESS:PORT, such as 192.0.2.7:10809.", param_hint="--listen")
    return TcpPort(matched[1] or matched[2], int(matched[3]), tls_directory)


def _show(exports: Sequence[Served]) -> None:
    output.table(
        ("DISK", "SIZE", "ACCESS", "URI"),
        ((one.alias, output.size(one.size), "overlay" if one.writable else "read-only", one.uri) for one in exports),
        right=("SIZE",),
    )
    output.line(f"Try: nbdinfo {shlex.quote(exports[0].uri)}")
    output.line("Serving until Ctrl-C.")


def _wait() -> None:
    """
    Wait for a signal, which raises KeyboardInterrupt.

    Not by a lock: the system may give the signal to a thread that serves, and we would sleep on.
    """
    woken, wake = socket.socketpair()
    with woken, wake:
        wake.setblocking(False)
        before = signal.set_wakeup_fd(wake.fileno())
        try:
            woken.recv(1)
        finally:
            signal.set_wakeup_fd(before)
