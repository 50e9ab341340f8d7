"""What commands print: tables for people, JSON for machines, both on standard output; errors on standard error."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NoReturn

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from blockferry import errors
from blockferry.jobs.compare import Comparison
from blockferry.jobs.figures import Row
from blockferry.repository import DiskManifest, Manifest, Verification

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(length: int) -> str:
    """Return `length` bytes as a person reads it, e.g. "1.5 GiB"."""
    value, unit = float(length), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{length} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def count(number: int, thing: str) -> str:
    """Return how many there are of a thing, whose plural has an s: "1 object", "2 objects"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print a table; the columns named in `right` are aligned to the right."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(printable(cell)) for cell in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        # Nothing is cut or folded for a file or a pipe.
        console = Console(highlight=False, width=10_000)
    console.print(grid)


def as_json(value: Any) -> None:
    """Print `value`, of msgspec structs, dataclasses and plain values, as one JSON document."""
    click.echo(json.dumps(msgspec.to_builtins(value), indent=2))


def fields(value: msgspec.Struct) -> dict[str, Any]:
    """Return the fields of a struct, by name."""
    return msgspec.structs.asdict(value)


def printable(text: str) -> str:
    """Return `text` with a sign in place of what could command a terminal: names come from whoever made a VM."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def line(text: str) -> None:
    """Print a line."""
    click.echo(printable(text))


def note(text: str) -> None:
    """Print a line on standard error."""
    click.echo(f"blockferry: {printable(text)}", err=True)


def failed(problem: errors.Error) -> NoReturn:
    """End a command that has printed what it found, which is not good: with a sentence and the exit code."""
    note(str(problem))
    raise click.exceptions.Exit(errors.exit_code(problem))


def error(problem: errors.Error, machine: bool) -> None:
    """Print an error: a sentence on standard error, and for machines a document on standard output."""
    note(str(problem))
    if machine:
        as_json({"error": {"kind": type(problem).__name__, "message": problem.message, "hint": problem.hint}})


def points(found: Sequence[Manifest], pinned: Collection[tuple[str, str]]) -> None:
    """Print recovery points, a row each. pinned: (vm id, point id) of those that are."""
    table(
        ("VM", "POINT", "CREATED (UTC)", "MODE", "READ AS", "DISKS", "SIZE", "MOVED", "STORED", "SECONDS", "REMARKS"),
        (
            (
                point.vm.name,
                point.id,
                f"{point.created:%Y-%m-%d %H:%M:%S}",
                point.mode,
                point.backup_mode,
                str(len(point.disks)),
                size(sum(disk.size for disk in point.disks)),
                size(sum(disk.bytes.moved for disk in point.disks)),
                size(sum(disk.bytes.stored for disk in point.disks)),
                f"{point.seconds:.1f}",
                ", ".join(["pinned"] * ((point.vm.id, point.id) in pinned) + [f"tag {tag}" for tag in point.tags]),
            )
            for point in found
        ),
        right=("DISKS", "SIZE", "MOVED", "STORED", "SECONDS"),
    )


def point(found: Manifest, pinned: bool) -> None:
    """Print one recovery point with all that is known of it."""
    facts = {
        "Recovery point": found.id,
        "VM": f"{found.vm.name} ({found.vm.id})",
        "Created": f"{found.created:%Y-%m-%d %H:%M:%S} UTC, in {found.seconds:.1f} s",
        "Backup": f"{found.mode}, {found.backup_mode} ({found.backup_id})",
        "Checkpoint": found.checkpoint_id or "none: no disk can have one",
        "Read against": found.parent_id or "nothing: complete by itself from the start",
        "Tags": ", ".join(found.tags) or "none",
        "Pinned": "yes: neither `prune` nor `delete` takes it away" if pinned else "no",
        "Configuration": f"OVF, {size(found.ovf.length)}" if found.ovf else f"none: {found.ovf_missing}",
    }
    for name, value in facts.items():
        line(f"{name + ':':<16} {value}")
    click.echo()
    disks(found)


def disks(found: Manifest) -> None:
    """Print the disks of a recovery point, a row each, and why a disk did not go through the first transport alone."""
    table(
        ("DISK", "FORMAT", "READ AS", "TRANSPORT", "SIZE", "DIRTY", "READ", "MOVED", "STORED", "SECONDS"),
        (
            (
                disk.alias,
                disk.format,
                disk.backup_mode,
                _way(disk),
                size(disk.size),
                size(disk.bytes.dirty),
                size(disk.bytes.read),
                size(disk.bytes.moved),
                size(disk.bytes.stored),
                f"{disk.seconds:.1f}",
            )
            for disk in found.disks
        ),
        right=("SIZE", "DIRTY", "READ", "MOVED", "STORED", "SECONDS"),
    )
    for reason in sorted({carrier.reason for disk in found.disks for carrier in disk.carriers if carrier.reason}):
        line(f"Not by the first transport alone: {reason}")


def _way(disk: DiskManifest) -> str:
    """Name what carried a disk: "grpc, imageio from 1.2 GiB"."""
    return ", ".join(
        carrier.transport
        + (f" ({carrier.remark})" if carrier.remark else "")
        + (f" from {size(carrier.start)}" if carrier.start else "")
        for carrier in disk.carriers
    )


def verification(found: Verification) -> None:
    """Print what a verification found: a row for each thing that each damaged object hurts."""
    line(f"Read and checked: {count(found.chunks, 'chunk')} with {size(found.checked)} of content.")
    if found.present:
        line(f"Seen to be there, and not read: {count(found.present, 'chunk')}.")
    if found.covered is not None and found.covered < 1:
        line(f"{100 * found.covered:.0f} % of what is stored was read since all of it was read last.")
    for lost in found.unreadable:
        line(lost.reason)
    if found.damage:
        table(
            ("DAMAGED OBJECT", "WHAT IS WRONG", "VM", "POINT", "DISK"),
            (
                (damage.name, damage.reason, hurt.vm_name, hurt.point_id, hurt.disk_id or "(OVF)")
                for damage in found.damage
                for hurt in damage.hurts
            ),
        )


def comparison(found: Comparison, rows: Sequence[Row]) -> None:
    """Print what a comparison of transports found, the fastest first."""
    line(comparison_heading(found))
    columns, cells = comparison_cells(rows)
    table(columns, cells, right=columns[1:])
    for note in comparison_notes(found):
        line(note)


def comparison_heading(found: Comparison) -> str:
    """Return what was compared, in a sentence."""
    disks = sorted({done.disk for carried in found.carried for done in carried.rounds})
    rounds = max(done.number for carried in found.carried for done in carried.rounds)
    kept = "stored" if found.stored else "checked and dropped"
    return (
        f"VM {found.vm_name}: {found.backup_mode} reading of {', '.join(disks)} in a {found.mode} backup, "
        f"{rounds} {'round' if rounds == 1 else 'rounds'}, blocks {kept}."
    )


def comparison_cells(rows: Sequence[Row]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Return the columns and the cells of the table."""
    columns = (
        "TRANSPORT", "MEDIAN", "SLOWEST", "FASTEST", "OF BEST", "FIRST BLOCK",
        "HOST CPU/GiB", "CONTROLLER CPU/GiB", "ON THE WIRE", "AGENT MEMORY",
    )  # fmt: skip
    cells = [
        (
            f"{row.transport} ({row.remark})" if row.remark else row.transport,
            f"{size(int(row.rate))}/s",
            f"{size(int(row.slowest))}/s",
            f"{size(int(row.fastest))}/s",
            f"{row.of_best:.0%}",
            f"{row.first_block * 1000:.0f} ms",
            "unknown" if row.host_cpu is None else f"{row.host_cpu:.2f} s",
            "unknown" if row.controller_cpu is None else f"{row.controller_cpu:.2f} s",
            size(row.wire),
            "unknown" if row.agent_resident is None else size(row.agent_resident),
        )
        for row in rows
    ]
    return columns, cells


def comparison_notes(found: Comparison) -> list[str]:
    """Return what belongs to the table: the engine's time, who is missing, and what the figures leave out."""
    time = found.engine
    notes = [
        f"The engine took {time.start:.1f} s to start the backup, {sum(time.transfers):.1f} s for the disks' transfers "
        f"and {time.finalize:.1f} s to end it.",
        f"The controller had {size(found.controller_peak)} of memory at its peak. Bytes on the wire are without what "
        "TLS, SSH and TCP add; host CPU is that of the agent, for imageio that of Image I/O's daemon.",
    ]
    if found.host_figures:
        notes.append(found.host_figures)
    return notes + [f"Not compared: {absent.transport}. {absent.reason}" for absent in found.absent]
