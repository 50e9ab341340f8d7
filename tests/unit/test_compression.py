"""Blocks that are compressed on their way, and limits of speed."""

from __future__ import annotations

import os
import time

import pytest
import zstandard

from blockferry.transport import content
from blockferry_agent import compression, digest, errors, reader
from blockferry_agent.blocks import Block, Kind, ReadRequest
from blockferry_agent.throttle import Throttle
from blockferry_agent.units import KiB, MiB
from tests.unit.disks import Disk

TEXT = b"changed blocks go back to the controller\n" * 30_000


def test_text_gets_smaller_and_comes_back() -> None:
    packed = compression.compress(memoryview(TEXT))
    assert packed is not None and len(packed) < len(TEXT) / 10
    block = Block(0, len(TEXT), Kind.DATA, digest.xxh3(TEXT), packed, compressed=True)
    assert content.plain(block) == block._replace(data=TEXT, compressed=False)


@pytest.mark.parametrize("length", [1, 512, 32 * KiB, 1 * MiB])
def test_random_data_is_left_alone(length: int) -> None:
    assert compression.compress(memoryview(os.urandom(length))) is None


def test_a_block_that_is_not_worth_it_as_a_whole_is_left_alone() -> None:
    middle = 1 * MiB // 2
    data = bytearray(os.urandom(1 * MiB))
    data[middle - 16 * KiB : middle + 16 * KiB] = bytes(32 * KiB)
    assert compression.compress(memoryview(data)) is None


@pytest.mark.parametrize(
    "data",
    [
        b"no zstd",
        b"",
        zstandard.compress(bytes(4097)),
        zstandard.compress(bytes(4095)),
        zstandard.compress(bytes(4096)) + b"more",
        zstandard.compress(bytes(4096))[:-1],
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(4096)),
    ],
)
def test_what_does_not_expand_to_the_block_is_refused(data: bytes) -> None:
    with pytest.raises(errors.ProtocolError, match="cannot be expanded"):
        content.plain(Block(0, 4096, Kind.DATA, b"", data, compressed=True))


def test_a_bomb_is_refused_before_it_expands() -> None:
    bomb = zstandard.compress(bytes(1 << 30))
    with pytest.raises(errors.ProtocolError):
        content.plain(Block(0, 1 << 30, Kind.DATA, b"", bomb, compressed=True))


def test_a_reader_compresses_when_asked() -> None:
    disk = Disk("a" * 4000)
    plain, packed = (
        list(reader.read(disk.open, ReadRequest(0, 4000, False, 4096, compress=compress), 1))
        for compress in (False, True)
    )
    assert not plain[0].compressed and packed[0].compressed
    assert packed[0].digest == plain[0].digest
    assert len(packed[0].data) < 100


def test_a_limit_of_speed_is_kept() -> None:
    disk = Disk("a" * 4000)
    began = time.monotonic()
    for _ in reader.read(disk.open, ReadRequest(0, 4000, False, 4, bytes_per_second=4000), 3):
        pass
    assert time.monotonic() - began > 0.6


def test_readings_share_a_limit() -> None:
    throttle = Throttle(1000)
    waits = [throttle.reserve(100) for _ in range(20)]
    assert waits[-1] == pytest.approx(2.0, abs=0.3)
    assert waits == sorted(waits)


def test_zeros_cost_no_speed() -> None:
    disk = Disk("0" * 4000)
    began = time.monotonic()
    for _ in reader.read(disk.open, ReadRequest(0, 4000, False, 4, bytes_per_second=1), 3):
        pass
    assert time.monotonic() - began < 5


def test_a_reading_that_waits_for_its_turn_can_be_stopped() -> None:
    reading = reader.read(Disk("a" * 4000).open, ReadRequest(0, 4000, False, 4, bytes_per_second=16), 3)
    iterator = iter(reading)
    next(iterator)
    began = time.monotonic()
    reading.close()
    assert time.monotonic() - began < 20
