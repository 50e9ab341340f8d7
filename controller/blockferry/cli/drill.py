"""`blockferry verify --boot`: its options, and what is said of a drill."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import click

from blockferry import errors
from blockferry.cli import output
from blockferry.cli.settings import Settings
from blockferry.jobs import drill
from blockferry.jobs.drill import Signs, Terms
from blockferry.jobs.firmware import Firmware
from blockferry.repository import Manifest
from blockferry_agent.units import MiB


class Options(NamedTuple):
    """What the options say. timeout: seconds.  memory: bytes.  firmware: None for the VM's own."""

    signs: Signs
    timeout: float
    memory: int
    firmware: Firmware | None


def drill_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of drills; it gets them as `drill`, None without --boot."""

    @click.option("--boot", is_flag=True, help="Boot POINT (default: latest) of VM in QEMU here, without network.")
    @click.option("--expect", metavar="TEXT", help="With --boot: a sign of life, a text on the serial console.")
    @click.option("--guest-agent", is_flag=True, help="With --boot: a sign of life, QEMU's guest agent answers.")
    @click.option(
        "--timeout",
        type=click.FloatRange(min=1),
        default=300,
        show_default=True,
        metavar="SECONDS",
        help="With --boot.",
    )
    @click.option(
        "--memory", type=click.IntRange(min=64), default=1024, show_default=True, metavar="MIB", help="With --boot."
    )
    @click.option(
        "--firmware",
        type=click.Choice(["bios", "uefi"]),
        help="With --boot. Default: what the VM's configuration says.",
    )
    @functools.wraps(command)
    def wrapper(
        *words: Any,
        boot: bool,
        expect: str | None,
        guest_agent: bool,
        timeout: float,
        memory: int,
        firmware: Firmware | None,
        **arguments: Any,
    ) -> None:
        if boot != (expect is not None or guest_agent):
            raise click.UsageError("--boot needs a sign of life, --expect or --guest-agent, which belong to it alone.")
        options = Options(Signs(expect, guest_agent), timeout, memory * MiB, firmware) if boot else None
        command(*words, drill=options, **arguments)

    return wrapper


def boot(settings: Settings, point: Manifest, options: Options) -> None:
    """Boot a point, and say what came of it."""
    site = settings.site()
    log = site.state / "drills" / f"{point.vm.id}.log"
    terms = Terms(options.timeout, options.memory, log, options.firmware)
    with settings.progress() as progress:
        result = drill.run(site.repository(), point, [], options.signs, terms, progress)
    if settings.machine:
        output.as_json(result)
    elif result.alive:
        output.line(f"Recovery point {point.id} of VM {point.vm.name} lives, after {result.seconds:.1f} s.")
        output.line(f"Its console: {result.log}")
    if not result.alive:
        seen = "See above what its console said" if result.console else "Its console said nothing; see what QEMU said"
        for said in result.console:
            output.note(said)
        output.failed(
            errors.RestoreError(
                f"Recovery point {point.id} gave no sign of life within {result.seconds:.0f} s: "
                f"{' and '.join(result.missing)} did not come.",
                f"{seen}, all of it in {result.log}; give it more --timeout or --memory, another --firmware, "
                "or try an older point.",
            )
        )
