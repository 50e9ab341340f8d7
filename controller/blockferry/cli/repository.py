"""`blockferry repository`: the place where recovery points are kept, and the keys that open it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import click

from blockferry.cli import output
from blockferry.cli.points import POINT_HELP
from blockferry.cli.settings import Settings, common_options
from blockferry.jobs import catalog, keyring, replication
from blockferry_agent.units import KiB

_FILE = click.Path(dir_okay=False, path_type=Path)


def _key_options(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option("--key-file", type=_FILE, help="Key file; made when it is not there.")(command)
    return click.option("--passphrase-file", type=_FILE, help="File with the passphrase alone.")(command)


@click.group()
def repository() -> None:
    """Make the repository that the configuration names, manage its keys, copy it."""


@repository.command()
@click.option(
    "--window",
    type=click.Choice(["256", "512", "1024", "2048", "4096", "8192"]),
    default="1024",
    show_default=True,
    help="Window in KiB: the longest piece that is read, hashed and stored as one.",
)
@click.option(
    "--compression", type=click.Choice(["zstd", "none"]), default="zstd", show_default=True, help="Of stored chunks."
)
@click.option("--encrypt", is_flag=True, help="Encrypt everything. This cannot be changed later.")
@_key_options
@common_options
def init(
    settings: Settings,
    window: str,
    compression: Literal["zstd", "none"],
    encrypt: bool,
    passphrase_file: Path | None,
    key_file: Path | None,
) -> None:
    """
    Make an empty repository at repository.url of the configuration. Its window and compression stay as they are.

    With --encrypt it is opened by the passphrase or key file that is named here, else by the configuration's. Keep a
    copy of what `repository key export` prints: without a key nothing can be restored.
    """
    _at_most_one(passphrase_file, key_file)
    if not encrypt and (passphrase_file or key_file):
        raise click.UsageError("A passphrase or a key file is for --encrypt.")
    configured = settings.site().config.repository
    made = keyring.init(configured, int(window) * KiB, compression, encrypt, passphrase_file, key_file)
    if settings.machine:
        output.as_json({"url": made.url, "settings": made.settings})
    else:
        click.echo(f"The repository {made.url} is ready{' and encrypted' if encrypt else ''}.")
        if encrypt:
            output.note("Print `blockferry repository key export` and keep it safe: without a key nothing can be read.")


@repository.command(epilog=POINT_HELP)
@click.argument("vm", required=False)
@click.argument("point", required=False)
@click.option("--to", "url", required=True, metavar="URL", help="The other repository: a path, or a bucket's URL.")
@click.option("--to-passphrase-file", type=_FILE, help="File with the other repository's passphrase alone.")
@click.option("--to-key-file", type=_FILE, help="The other repository's key file.")
@common_options
def copy(
    settings: Settings,
    vm: str | None,
    point: str | None,
    url: str,
    to_passphrase_file: Path | None,
    to_key_file: Path | None,
) -> None:
    """
    Copy all recovery points, those of VM, or one POINT to another repository, which has its own key or none.

    Points that are there already are left as they are, and only chunks that are missing there are written. A copy that
    was ended goes on where it was. The other repository must have been made with the same window.
    """
    if to_passphrase_file is not None and to_key_file is not None:
        raise click.UsageError("Give --to-passphrase-file or --to-key-file, not both.")
    source = settings.site().repository()
    target = replication.target(url, to_passphrase_file, to_key_file)
    points = catalog.points(source, vm) if vm is None or point is None else [catalog.point(source, vm, point)]
    copied = []
    with settings.progress() as progress:
        for done in replication.run(source, target, points, progress):
            copied.append(done)
            if not settings.machine and done.new:
                output.line(
                    f"{done.vm_name} {done.point_id} is copied: {output.size(done.moved)} read, "
                    f"{output.size(done.stored)} written."
                )
    if settings.machine:
        output.as_json(copied)
    else:
        new = sum(done.new for done in copied)
        output.line(
            f"Copied to {target.url}: {output.count(new, 'recovery point')}; there already: {len(copied) - new}."
        )


@repository.group()
def key() -> None:
    """The keys that open an encrypted repository. Each opens all of it; nothing is rewritten when they change."""


@key.command("list")
@common_options
def list_keys(settings: Settings) -> None:
    """List the keys, oldest first."""
    opened = keyring.opened(settings.site().config.repository)
    found = opened.list()
    used = None if opened.used is None else opened.used.id
    if settings.machine:
        output.as_json(
            [{"id": key.id, "kind": key.kind, "created": key.created, "used": key.id == used} for key in found]
        )
        return
    output.table(
        ["KEY", "KIND", "CREATED", ""],
        [[key.id, key.kind, f"{key.created:%Y-%m-%d %H:%M}", "in use" if key.id == used else ""] for key in found],
    )


@key.command()
@_key_options
@common_options
def add(settings: Settings, passphrase_file: Path | None, key_file: Path | None) -> None:
    """Let one more passphrase or key file open the repository."""
    _exactly_one(passphrase_file, key_file)
    opened = keyring.opened(settings.site().config.repository)
    _say(settings, "added", opened.add(keyring.new_secret(passphrase_file, key_file)).id)


@key.command()
@_key_options
@common_options
def change(settings: Settings, passphrase_file: Path | None, key_file: Path | None) -> None:
    """Let another passphrase or key file open the repository, in place of the configuration's."""
    _exactly_one(passphrase_file, key_file)
    opened = keyring.opened(settings.site().config.repository)
    _say(settings, "added, and the old one removed", opened.change(keyring.new_secret(passphrase_file, key_file)).id)


@key.command()
@click.argument("key_id", metavar="KEY")
@common_options
def remove(settings: Settings, key_id: str) -> None:
    """Remove a KEY. Who knew it may have kept the master key: against that only a new repository helps."""
    keyring.opened(settings.site().config.repository).remove(key_id)
    _say(settings, "removed", key_id)


@key.command()
@common_options
def export(settings: Settings) -> None:
    """
    Print the master key, to be kept on paper. It opens the repository for ever.

    To use it, type it into a file, and let repository.key_file name that: a wrong digit is found, and in which line.
    """
    text = keyring.opened(settings.site().config.repository).export()
    if settings.machine:
        output.as_json({"key": text})
    else:
        click.echo(text, nl=False)


def _at_most_one(passphrase_file: Path | None, key_file: Path | None) -> None:
    if passphrase_file is not None and key_file is not None:
        raise click.UsageError("Give --passphrase-file or --key-file, not both.")


def _exactly_one(passphrase_file: Path | None, key_file: Path | None) -> None:
    _at_most_one(passphrase_file, key_file)
    if passphrase_file is None and key_file is None:
        raise click.UsageError("Give --passphrase-file or --key-file.")


def _say(settings: Settings, what: str, key_id: str) -> None:
    if settings.machine:
        output.as_json({"key": key_id})
    else:
        click.echo(f"Key {key_id} is {what}.")
