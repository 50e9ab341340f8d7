"""What a comparison comes to, and the report that shows it."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from blockferry.cli import report
from blockferry.cli.program import program
from blockferry.jobs import figures
from blockferry.jobs.compare import Absent, Carried, Comparison, EngineTime
from blockferry.jobs.measurement import Round
from blockferry_agent.units import GiB, MiB

HOSTILE = "<script>alert(1)</script>\x1b[31m"


def done(disk: str, number: int, seconds: float, host_cpu: float | None = 1.0, read: int = GiB) -> Round:
    return Round(
        disk=disk,
        number=number,
        open=0.1,
        first_block=0.02,
        seconds=seconds,
        read=read,
        moved=read,
        wire=read + 100,
        controller_cpu=0.5,
        host_cpu=host_cpu,
        agent_resident=50 * MiB,
        samples=((0.0, 0), (seconds, read)),
        remark="",
    )


def comparison(*carried: Carried, name: str = "vm") -> Comparison:
    return Comparison(
        vm_name=name,
        vm_id="1",
        mode="live",
        backup_mode="full",
        stored=False,
        window=MiB,
        machine="here",
        version="0",
        engine=EngineTime(1, [1, 2], 3),
        carried=list(carried),
        absent=[Absent("ssh", f"no key {name}")],
        host_figures="",
        controller_peak=100 * MiB,
    )


def test_a_round_is_all_its_disks() -> None:
    found = comparison(
        Carried("slow", "", [done("a", 1, 3), done("b", 1, 1), done("a", 2, 2), done("b", 2, 2)]),
        Carried(
            "fast",
            "",
            [done("a", 1, 1), done("b", 1, 1), done("a", 2, 0.5), done("b", 2, 0.5), done("a", 3, 1), done("b", 3, 1)],
        ),
    )
    fast, slow = figures.of(found)
    assert (fast.transport, fast.rate, fast.slowest, fast.fastest, fast.of_best) == ("fast", GiB, GiB, 2 * GiB, 1.0)
    assert (slow.rate, slow.of_best, slow.wire) == (GiB / 2, 0.5, 2 * (GiB + 100))
    assert (slow.host_cpu, slow.controller_cpu) == (1.0, 0.5)


def test_what_nobody_could_tell_stays_unknown() -> None:
    (row,) = figures.of(comparison(Carried("imageio", "", [done("a", 1, 1), done("a", 2, 1, host_cpu=None)])))
    assert row.host_cpu is None


def test_nothing_to_read_is_no_division_by_zero() -> None:
    (row,) = figures.of(comparison(Carried("grpc", "", [done("a", 1, 0.0, read=0)])))
    assert (row.rate, row.of_best, row.controller_cpu) == (0.0, 0.0, None)


def test_the_report_needs_no_network_and_runs_nothing_of_a_guest() -> None:
    found = comparison(Carried("grpc", "clear text", [done(HOSTILE, 1, 1)]), name=HOSTILE)
    text = report.html(found, figures.of(found))
    assert "<script>alert" not in text
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", text)
    assert "clear text" in text and "no key" in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--limit", "many"], "write it like 512MiB"),
        (["--limit", "0"], "write it like 512MiB"),
        (["--rounds", "0"], "0 is not in the range"),
        (["--incremental", "--store"], "--store needs a full read"),
        (["--transport", "pigeon"], "pigeon"),
    ],
)
def test_a_wrong_command_line_is_named(words: list[str], says: str) -> None:
    result = CliRunner().invoke(program, ["compare", "vm", *words])
    assert result.exit_code == 2
    assert says in result.output
