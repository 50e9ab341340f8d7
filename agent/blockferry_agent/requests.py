"""Requests off the wire, with every field checked, as the reader wants them. Raises InvalidRequest throughout."""

from __future__ import annotations

from collections.abc import Sequence

from blockferry_agent import blocks, digest, errors
from blockferry_agent.blocks import Known, ReadRequest
from blockferry_proto import agent_pb2

MAX_LISTED = 65536
"""Entries of `whole_windows` and of `known`."""


def length_of(start: int, length: int, size: int) -> int:
    """Return the length of a range of a disk of `size` bytes; 0 means to its end."""
    if start > size or length > size - start:
        raise errors.InvalidRequest(f"Bytes {start} to {start + length} are not within the disk, which has {size}.")
    return length or size - start


def window_of(message: agent_pb2.ReadBlocksRequest | agent_pb2.WriteTarget) -> int:
    """Return the window in bytes."""
    window = message.window_bytes
    if window & (window - 1) or not blocks.MIN_WINDOW <= window <= blocks.MAX_WINDOW:
        raise errors.InvalidRequest(
            f"window_bytes must be a power of two from {blocks.MIN_WINDOW} to {blocks.MAX_WINDOW}, not {window}."
        )
    return window


def read_request(message: agent_pb2.ReadBlocksRequest, size: int) -> ReadRequest:
    """Return what is asked of a disk of `size` bytes."""
    window = window_of(message)
    _check_listed("whole_windows", message.whole_windows)
    if any(start % window for start in message.whole_windows):
        raise errors.InvalidRequest("whole_windows must be multiples of window_bytes.")
    _check_listed("known", [known.start for known in message.known])
    for known in message.known:
        if not 0 < known.length <= window or len(known.xxh3) != digest.LENGTH:
            raise errors.InvalidRequest(f"The known block at {known.start} has an impossible length or digest.")
    return ReadRequest(
        start=message.start,
        length=length_of(message.start, message.length, size),
        incremental=message.incremental,
        window=window,
        whole_windows=frozenset(message.whole_windows),
        known={(known.start, known.length): known.xxh3 for known in message.known},
        compress=message.compress,
        bytes_per_second=message.bytes_per_second,
    )


def expected(message: agent_pb2.CompareBlocksRequest) -> list[Known]:
    """Return what a disk should hold: at least one range. Whether the last one is within the disk, is not checked."""
    _check_listed("ranges", [listed.start for listed in message.ranges])
    known = [Known(listed.start, listed.length, listed.xxh3) for listed in message.ranges]
    if not known:
        raise errors.InvalidRequest("There are no ranges to compare.")
    end = 0
    for place in known:
        if len(place.digest) not in (0, digest.LENGTH) or (place.digest and place.length > blocks.MAX_WINDOW):
            raise errors.InvalidRequest(f"The range at {place.start} has an impossible length or digest.")
        if place.start < end or not place.length:
            raise errors.InvalidRequest(f"The range of {place.length} bytes at {place.start} has no place there.")
        end = place.end
    return known


def _check_listed(name: str, starts: Sequence[int]) -> None:
    if len(starts) > MAX_LISTED:
        raise errors.InvalidRequest(f"{name} has {len(starts)} entries, and {MAX_LISTED} are allowed.")
    if any(first >= second for first, second in zip(starts, starts[1:])):
        raise errors.InvalidRequest(f"{name} must be in ascending order.")
