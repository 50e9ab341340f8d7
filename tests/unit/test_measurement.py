"""One reading, measured: pieces, time-line, and what is no block of the disk."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest
import xxhash

from blockferry.jobs import measurement
from blockferry.jobs.measurement import Round
from blockferry.transport.disk import Disk, Target, Transport
from blockferry_agent import errors as agent_errors
from blockferry_agent.blocks import Block, Kind, ReadRequest, Summary
from blockferry_agent.units import GiB, MiB


class Scripted:
    """A transport, its disk and its readings at once: a disk whose blocks are `data`, MiB by MiB."""

    name = "grpc"
    is_last_resort = False
    remark = "clear text"

    def __init__(self, blocks: int, spoiled: bool = False) -> None:
        self.size = blocks * MiB
        self._spoiled = spoiled
        self.closed = 0
        self.asked: list[ReadRequest] = []
        self.wire_bytes = 7

    def open(self, target: Target) -> Disk:
        return self

    def read(self, request: ReadRequest) -> Scripted:
        self.asked.append(request)
        return self

    def __iter__(self) -> Iterator[Block]:
        request = self.asked[-1]
        data = bytes(MiB)
        digest = xxhash.xxh3_128_digest(b"else" if self._spoiled else data)
        for start in range(request.start, request.start + request.length, MiB):
            yield Block(start, MiB, Kind.DATA, digest, data)

    @property
    def summary(self) -> Summary:
        length = self.asked[-1].length
        return Summary(length // MiB, length, length, length)

    def close(self) -> None:
        self.closed += 1


def measured(scripted: Scripted, length: int) -> Round:
    return measurement.measure(
        cast("Transport", scripted),
        cast("Target", SimpleNamespace()),
        measurement.Checking(),
        ReadRequest(0, length, False, MiB),
        lambda: None,
        disk="disk1",
        number=1,
    )


def test_time_line_is_bounded_and_ends_with_all_that_came() -> None:
    found = measured(Scripted(2000), 2000 * MiB)
    assert 2 <= len(found.samples) <= measurement.MAX_SAMPLES
    assert list(found.samples) == sorted(found.samples)
    assert (found.moved, found.read, found.remark) == (2000 * MiB, 2000 * MiB, "clear text")
    assert found.samples[-1][1] <= found.moved


def test_long_range_is_asked_for_in_pieces_without_a_gap() -> None:
    scripted = Scripted(1500)
    found = measured(scripted, 1500 * MiB)
    assert [(asked.start, asked.length) for asked in scripted.asked] == [(0, GiB), (GiB, 476 * MiB)]
    assert found.wire == 14
    assert scripted.closed == 3, "two readings and the disk"


def test_block_that_is_not_what_was_read_is_refused_and_all_is_closed() -> None:
    scripted = Scripted(1, spoiled=True)
    with pytest.raises(agent_errors.ProtocolError, match="not what was read"):
        measured(scripted, MiB)
    assert scripted.closed == 2
