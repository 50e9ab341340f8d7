"""What a comparison comes to: a row of figures per transport, the fastest first."""

from __future__ import annotations

import statistics

import msgspec

from blockferry.jobs.compare import Carried, Comparison
from blockferry.jobs.measurement import Round
from blockferry_agent.units import GiB


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """
    One transport. Rates are bytes per second of what was read on the host, over the disks of a round together.

    of_best: median rate, as a share of the fastest transport's.  first_block: seconds, the median.
    host_cpu, controller_cpu: seconds of processor per GiB; None when nobody can tell, or nothing was read.
    wire: bytes of a round, the median.  agent_resident: bytes, the most that was seen.
    """

    transport: str
    remark: str
    rate: float
    slowest: float
    fastest: float
    of_best: float
    first_block: float
    host_cpu: float | None
    controller_cpu: float | None
    wire: int
    agent_resident: int | None


def of(comparison: Comparison) -> list[Row]:
    """Return the figures of a comparison, the fastest transport first."""
    rows = [_row(carried) for carried in comparison.carried]
    best = max((row.rate for row in rows), default=0.0)
    rows = [msgspec.structs.replace(row, of_best=row.rate / best if best else 0.0) for row in rows]
    return sorted(rows, key=lambda row: row.rate, reverse=True)


def _row(carried: Carried) -> Row:
    by_number: dict[int, list[Round]] = {}
    for done in carried.rounds:
        by_number.setdefault(done.number, []).append(done)
    rates = [_rate(rounds) for rounds in by_number.values()]
    residents = [done.agent_resident for done in carried.rounds if done.agent_resident is not None]
    return Row(
        transport=carried.transport,
        remark=carried.remark,
        rate=statistics.median(rates),
        slowest=min(rates),
        fastest=max(rates),
        of_best=0.0,
        first_block=statistics.median(done.first_block for done in carried.rounds),
        host_cpu=_per_gib([done.host_cpu for done in carried.rounds], carried.rounds),
        controller_cpu=_per_gib([done.controller_cpu for done in carried.rounds], carried.rounds),
        wire=int(statistics.median(sum(done.wire for done in rounds) for rounds in by_number.values())),
        agent_resident=max(residents, default=None),
    )


def _rate(rounds: list[Round]) -> float:
    seconds = sum(done.seconds for done in rounds)
    return sum(done.read for done in rounds) / seconds if seconds else 0.0


def _per_gib(used: list[float | None], rounds: list[Round]) -> float | None:
    read = sum(done.read for done in rounds)
    known = [seconds for seconds in used if seconds is not None]
    return sum(known) / (read / GiB) if read and len(known) == len(used) else None
