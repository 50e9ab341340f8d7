"""`blockferry files`: single files out of a recovery point."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from blockferry.cli import output
from blockferry.cli.points import POINT_HELP
from blockferry.cli.settings import Settings, common_options
from blockferry.jobs import catalog
from blockferry.jobs import files as job

PATH_HELP = POINT_HELP + " PATH is one of the guest's: its file systems are mounted as it mounts them."


def _options(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option(
        "--filesystem", metavar="NAME", help="Paths are of this file system alone, as `files ls VM` names it."
    )(command)
    return click.option("--disk", "disks", multiple=True, metavar="DISK", help="Look only into this disk; repeatable.")(
        command
    )


@click.group()
def files() -> None:
    """
    Look into a recovery point, and bring single files and directories back.

    The disks are served, not copied, and looked into by libguestfs in a small machine of its own, without root.
    """


@files.command(epilog=PATH_HELP)
@click.argument("vm")
@click.argument("point", default="latest")
@click.argument("path", required=False)
@_options
@common_options
def ls(
    settings: Settings, vm: str, point: str, path: str | None, disks: tuple[str, ...], filesystem: str | None
) -> None:
    """List the directory PATH of a recovery point of VM, or without PATH its file systems."""
    with _guest(settings, vm, point, disks) as guest:
        if path is None:
            places = guest.places()
            if settings.machine:
                output.as_json(places)
            else:
                output.table(
                    ("FILE SYSTEM", "TYPE", "LABEL", "SIZE", "MOUNTED AT"),
                    ((each.name, each.kind, each.label, output.size(each.size), each.path or "") for each in places),
                    right=("SIZE",),
                )
            return
        guest.mount(filesystem)
        listed = guest.listing(path)
    if settings.machine:
        output.as_json(listed)
    else:
        output.table(
            ("MODE", "UID", "GID", "SIZE", "MODIFIED (UTC)", "NAME"),
            (
                (each.mode, str(each.uid), str(each.gid), str(each.size), _moment(each.mtime), _name(each))
                for each in listed
            ),
            right=("UID", "GID", "SIZE"),
        )


@files.command(epilog=PATH_HELP)
@click.argument("vm")
@click.argument("point")
@click.argument("path", nargs=-1, required=True)
@click.option(
    "--to",
    "directory",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for what is brought back; made when it is not there, for its owner alone.",
)
@_options
@common_options
def get(
    settings: Settings,
    vm: str,
    point: str,
    path: Sequence[str],
    directory: Path,
    disks: tuple[str, ...],
    filesystem: str | None,
) -> None:
    """
    Bring files of VM back, and directories with all that is in them.

    Modes and times are kept; as root, owners, by number, and what is in a directory keeps its extended attributes, too.
    Nothing is replaced.
    """
    with _guest(settings, vm, point, disks) as guest:
        guest.mount(filesystem)
        fetched = [guest.fetch(each, directory) for each in path]
    if settings.machine:
        output.as_json(fetched)
    else:
        for each in fetched:
            output.line(f"{each.source} is in {each.path}.")


@files.command(epilog=PATH_HELP)
@click.argument("vm")
@click.argument("point")
@click.argument("path")
@_options
@common_options
def tar(settings: Settings, vm: str, point: str, path: str, disks: tuple[str, ...], filesystem: str | None) -> None:
    """
    Write a tar archive of what is in a directory of VM, or of one file, to standard output.

    Owners, modes and times are kept.
    """
    if sys.stdout.isatty():
        raise click.UsageError("An archive is not for a terminal: write `> FILE`, or `| ssh HOST tar -x`.")
    with _guest(settings, vm, point, disks) as guest:
        guest.mount(filesystem)
        guest.archive(path, sys.stdout.buffer)


@contextlib.contextmanager
def _guest(settings: Settings, vm: str, point: str, disks: Sequence[str]) -> Iterator[job.Guest]:
    repository = settings.site().repository()
    with (
        settings.progress() as progress,
        job.opened(repository, catalog.point(repository, vm, point), disks, progress) as guest,
    ):
        yield guest


def _moment(seconds: float) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        # A file system may say anything.
        return "?"


def _name(listed: job.Listed) -> str:
    return listed.name if listed.target is None else f"{listed.name} -> {listed.target}"
