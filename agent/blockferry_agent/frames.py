"""
What goes over the socket of the `netcat` transport.

    client                                        agent
    token (32 bytes)                         ─▶
                                             ◀─   GREETING
    length (4 bytes), ReadBlocksRequest      ─▶
                                             ◀─   a frame for each block, then one with the summary
    length, ReadBlocksRequest                ─▶
                                             ◀─   blocks, and an error in place of the summary; hangs up

A frame is a header of 44 bytes, big-endian, and its payload:

    offset   bytes
    0        4       "BFRY"
    4        1       kind: 1 data, 2 zero, 3 same, 4 summary, 5 error
    5        1       1 when the payload of a block of data is a zstd frame, else 0
    6        2       0
    8        8       start of the block          } 0 for a summary
    16       8       length of the block         } and an error
    24       4       length of the payload
    28       16      XXH3-128 of a block of data, canonical; else 0

    kind      payload
    data      the content, or a zstd frame of it that is shorter
    zero      none; of any length
    same      none
    summary   a protobuf Summary
    error     status code (1 byte, blockferry_agent/status.py), message, NUL, hint (percent-encoded); UTF-8

A request names no ticket, which is a secret, while this may be clear text: the socket was opened for one.

The peer is taken for hostile: every length is checked before anything of it is allocated.
"""

from __future__ import annotations

import struct
from typing import Callable, NoReturn, Union

from google.protobuf.message import DecodeError

from blockferry_agent import digest, errors, requests, status
from blockferry_agent.blocks import Block, Data, Kind, Summary
from blockferry_agent.units import KiB
from blockferry_proto import agent_pb2

TOKEN_LENGTH = 32

GREETING = b"blockferry netcat 1\n"
"""What the agent answers to the right token."""

_MAX_KNOWN, _MAX_WHOLE = 40, 10
"""Bytes of one KnownBlock, and of one of whole_windows, in protobuf: tags and numbers at their longest."""

MAX_REQUEST = requests.MAX_LISTED * (_MAX_KNOWN + _MAX_WHOLE) + 4 * KiB
"""Longest ReadBlocksRequest, in bytes."""

MAX_SUMMARY = 256
MAX_ERROR = 8 * KiB

_MAX_TEXT = 2 * KiB  # of a message, and of a hint

MAX_END = 2**63 - 1
"""Where the last block of a disk may end."""

LENGTH = struct.Struct(">I")
HEADER = struct.Struct(">4sBBHQQI16s")

_MAGIC = b"BFRY"
_DATA, _ZERO, _SAME, _SUMMARY, _ERROR = range(1, 6)
_ZSTD = 1
_NO_DIGEST = bytes(digest.LENGTH)

_BLOCKS = {_DATA: Kind.DATA, _ZERO: Kind.ZERO, _SAME: Kind.SAME}
_NUMBERS = {kind: number for number, kind in _BLOCKS.items()}

Receive = Callable[[int], Union[bytes, bytearray]]
"""Returns exactly so many of the next bytes, or raises."""


# What is sent


def of_request(message: agent_pb2.ReadBlocksRequest) -> bytes:
    """Return a request as it is sent."""
    data: bytes = message.SerializeToString()
    return LENGTH.pack(len(data)) + data


def of_block(block: Block) -> tuple[bytes, Data]:
    """Return the header and the payload of a block's frame."""
    header = HEADER.pack(
        _MAGIC,
        _NUMBERS[block.kind],
        _ZSTD if block.compressed else 0,
        0,
        block.start,
        block.length,
        len(block.data),
        block.digest or _NO_DIGEST,
    )
    return header, block.data


def of_summary(summary: Summary) -> bytes:
    """Return the frame that ends a reading."""
    message = agent_pb2.Summary(
        blocks=summary.blocks,
        dirty_bytes=summary.dirty,
        read_bytes=summary.read,
        moved_bytes=summary.moved,
        stalled_seconds=summary.stalled,
    )
    return _framed(_SUMMARY, message.SerializeToString())


def of_error(error: errors.Error) -> bytes:
    """Return the frame that ends a reading which failed. A text without end is cut."""
    texts = (error.message.replace("\0", " "), status.hint_of(error))
    return _framed(
        _ERROR, bytes([status.code_of(error)]) + b"\0".join(text.encode(errors="replace")[:_MAX_TEXT] for text in texts)
    )


def _framed(kind: int, payload: bytes) -> bytes:
    return HEADER.pack(_MAGIC, kind, 0, 0, 0, 0, len(payload), _NO_DIGEST) + payload


# What is received


def receive_request(receive: Receive) -> agent_pb2.ReadBlocksRequest:
    """Return the next request. Raises InvalidRequest."""
    (length,) = LENGTH.unpack(receive(LENGTH.size))
    if length > MAX_REQUEST:
        raise errors.InvalidRequest(f"A request of {length} bytes is too long: {MAX_REQUEST} are allowed.")
    message = agent_pb2.ReadBlocksRequest()
    try:
        message.ParseFromString(bytes(receive(length)))
    except DecodeError:
        raise errors.InvalidRequest("What came over the socket is no request.") from None
    return message


class Reader:
    """
    Reads the frames of one request's answer.

    receive: from the socket.  window: of the request.
    where: names the agent in errors, in the middle of a sentence.
    """

    def __init__(self, receive: Receive, window: int, where: str) -> None:
        self._receive = receive
        self._window = window
        self._where = where
        self.received = 0
        """Bytes of the frames that came."""

    def next(self) -> Block | Summary:
        """
        Return the next block, or the summary, behind which nothing comes.

        Raises ProtocolError for a frame that cannot be, and the error that the agent sent in place of the summary.
        """
        magic, kind, flags, zero, start, length, size, xxh3 = HEADER.unpack(self._receive(HEADER.size))
        if magic != _MAGIC or zero:
            self._refuse("something else than a frame")
        if kind in _BLOCKS:
            block = self._block(_BLOCKS[kind], flags, start, length, size, xxh3)
        elif kind in (_SUMMARY, _ERROR) and not (flags or start or length or any(xxh3)):
            return self._summary(size) if kind == _SUMMARY else self._raise(size)
        else:
            self._refuse(f"a frame of kind {kind}")
        self.received += HEADER.size + size
        return block

    def _block(self, kind: Kind, flags: int, start: int, length: int, size: int, xxh3: bytes) -> Block:
        if not length or start + length > MAX_END or (kind is not Kind.ZERO and length > self._window):
            self._refuse(f"a block of {length} bytes")
        if kind is not Kind.DATA:
            if flags or size or xxh3 != _NO_DIGEST:
                self._refuse(f"a block of kind {kind.value} with a payload of {size} bytes")
            return Block(start, length, kind)
        if flags not in (0, _ZSTD) or (not 0 < size < length if flags else size != length):
            self._refuse(f"{size} bytes as a block of {length}")
        return Block(start, length, kind, xxh3, memoryview(self._receive(size)), compressed=flags == _ZSTD)

    def _summary(self, size: int) -> Summary:
        message = agent_pb2.Summary()
        try:
            message.ParseFromString(bytes(self._payload(size, MAX_SUMMARY)))
        except DecodeError:
            self._refuse("a summary that is none")
        return Summary(
            message.blocks, message.dirty_bytes, message.read_bytes, message.moved_bytes, message.stalled_seconds
        )

    def _raise(self, size: int) -> NoReturn:
        payload = bytes(self._payload(size, MAX_ERROR))
        message, _, hint = payload[1:].decode(errors="replace").partition("\0")
        error = status.error_from(payload[0] if payload else 0, message, {status.HINT_KEY: hint})
        if error is None:
            self._refuse("an error that nobody knows")
        raise error

    def _payload(self, size: int, most: int) -> bytes | bytearray:
        if size > most:
            self._refuse(f"{size} bytes where {most} are the most")
        payload = self._receive(size)
        self.received += HEADER.size + size
        return payload

    def _refuse(self, what: str) -> NoReturn:
        raise errors.ProtocolError(
            f"{self._where[0].upper()}{self._where[1:]} sent {what}.",
            "Run the backup again; if it stays, deploy the agent again.",
        )
