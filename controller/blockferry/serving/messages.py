"""
The messages of the NBD protocol, as a server reads and writes them: bytes to values and back, no sockets.

What comes from a client is taken for hostile: the functions that read it raise Malformed and nothing else, and no
length that a client names is believed before it was compared with a limit.

The protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

from blockferry_agent.units import KiB, MiB

MAX_OPTION = 16 * KiB
"""Bytes of an option's payload that are accepted."""
MAX_STRING = 4096
"""Bytes of a string, by the protocol."""
MAX_PAYLOAD = 32 * MiB
"""Bytes of one READ or WRITE: what every client may count on, and QEMU's own limit."""
PREFERRED_BLOCK = 64 * KiB

# Flags of the handshake.
FIXED_NEWSTYLE, NO_ZEROES = 1, 2
FLAGS_LENGTH = 4

# Options.
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED_REPLY = 1, 2, 3, 5, 6, 7, 8
LIST_META_CONTEXT, SET_META_CONTEXT = 9, 10
OPTION_LENGTH = 16

# Replies to options.
ACK, SERVER, INFORMATION, META_CONTEXT = 1, 2, 3, 4
UNSUPPORTED = 1 << 31 | 1
POLICY = 1 << 31 | 2
INVALID = 1 << 31 | 3
TLS_REQUIRED = 1 << 31 | 5
UNKNOWN = 1 << 31 | 6

ALLOCATION = "base:allocation"
ALLOCATION_ID = 1
HOLE_AND_ZERO = 1 | 2
"""State of base:allocation of what reads as zeros and has nothing stored; 0 is data."""

# Transmission flags.
HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA = 1 << 0, 1 << 1, 1 << 2, 1 << 3
SEND_TRIM, SEND_WRITE_ZEROES, SEND_DF, CAN_MULTI_CONN = 1 << 5, 1 << 6, 1 << 7, 1 << 8

# Commands, and their flags.
READ, WRITE, DISCONNECT, FLUSH, TRIM, WRITE_ZEROES, BLOCK_STATUS = 0, 1, 2, 3, 4, 6, 7
FUA, NO_HOLE, DF, REQ_ONE = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REQUEST_LENGTH = 28

# Errors.
EPERM, EIO, EINVAL, ENOSPC, EOVERFLOW = 1, 5, 22, 28, 75

_GREETING = struct.Struct(">8s8sH")
_OPTION = struct.Struct(">8sII")
_OPTION_REPLY = struct.Struct(">QIII")
_EXPORT = struct.Struct(">HQH")
_BLOCK_SIZE = struct.Struct(">HIII")
_REQUEST = struct.Struct(">IHHQQI")
_SIMPLE_REPLY = struct.Struct(">IIQ")
_CHUNK = struct.Struct(">IHHQI")
_HOLE = struct.Struct(">QI")
_ERROR = struct.Struct(">IH")
_EXTENT = struct.Struct(">II")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")

_OPTION_MAGIC = b"IHAVEOPT"
_OPTION_REPLY_MAGIC = 0x0003E889045565A9
_REQUEST_MAGIC = 0x25609513
_SIMPLE_MAGIC = 0x67446698
_CHUNK_MAGIC = 0x668E33EF
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
_NONE_CHUNK, _DATA_CHUNK, _HOLE_CHUNK, _STATUS_CHUNK, _ERROR_CHUNK = 0, 1, 2, 5, 1 << 15 | 1
_DONE = 1


class Malformed(ValueError):
    """The client does not speak the protocol."""


class Option(NamedTuple):
    """The head of an option. length: bytes of the payload that follows, at most MAX_OPTION."""

    number: int
    length: int


class Queries(NamedTuple):
    """The payload of LIST_META_CONTEXT and SET_META_CONTEXT."""

    export: str
    contexts: list[str]


class Request(NamedTuple):
    """
    A request.

    start, length: bytes, as the client wrote them.  cookie: the client's name for the request.
    """

    flags: int
    command: int
    cookie: int
    start: int
    length: int


# What a client sends.


def flags(data: bytes | bytearray) -> int:
    """Return the client's flags of the handshake. Raises Malformed when they are not of the fixed newstyle."""
    (given,) = _unpack(_U32, data, 0)
    if not given & FIXED_NEWSTYLE or given & ~(FIXED_NEWSTYLE | NO_ZEROES):
        raise Malformed(f"handshake flags {given:#x}")
    return int(given)


def option(data: bytes | bytearray) -> Option:
    """Raises Malformed, also for an option that is too long."""
    magic, number, length = _unpack(_OPTION, data, 0)
    if magic != _OPTION_MAGIC:
        raise Malformed("an option without its magic")
    if length > MAX_OPTION:
        raise Malformed(f"an option of {length} bytes")
    return Option(number, length)


def text(data: bytes | bytearray) -> str:
    """Return a string that is a whole payload. Raises Malformed."""
    if len(data) > MAX_STRING:
        raise Malformed(f"a string of {len(data)} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Malformed("a string that is not UTF-8") from None


def go(data: bytes | bytearray) -> str:
    """Return the export that INFO or GO names; which information the client asks for besides does not matter."""
    name, place = _string(data, 0)
    (count,) = _unpack(_U16, data, place)
    if len(data) != place + _U16.size * (1 + count):
        raise Malformed("INFO or GO of a wrong length")
    return name


def queries(data: bytes | bytearray) -> Queries:
    """Raises Malformed."""
    export, place = _string(data, 0)
    (count,) = _unpack(_U32, data, place)
    place += _U32.size
    contexts: list[str] = []
    # Each takes four bytes at least: a count that lies ends with the payload.
    for _ in range(count):
        context, place = _string(data, place)
        contexts.append(context)
    if place != len(data):
        raise Malformed("meta contexts of a wrong length")
    return Queries(export, contexts)


def request(data: bytes | bytearray) -> Request:
    """Raises Malformed."""
    magic, *rest = _unpack(_REQUEST, data, 0)
    if magic != _REQUEST_MAGIC:
        raise Malformed("a request without its magic")
    return Request(*rest)


def _string(data: bytes | bytearray, place: int) -> tuple[str, int]:
    """Return the string at `place`, and the place behind it."""
    (length,) = _unpack(_U32, data, place)
    start = place + _U32.size
    if length > len(data) - start:
        raise Malformed("a string that is longer than its message")
    return text(data[start : start + length]), start + length


def _unpack(form: struct.Struct, data: bytes | bytearray, place: int) -> tuple[Any, ...]:
    try:
        return form.unpack_from(data, place)
    except struct.error:
        raise Malformed("a message that ends too early") from None


# What the server sends.


def greeting() -> bytes:
    """Return the first message of all."""
    return _GREETING.pack(b"NBDMAGIC", _OPTION_MAGIC, FIXED_NEWSTYLE | NO_ZEROES)


def option_reply(option: int, kind: int, payload: bytes = b"") -> bytes:
    """Return a reply to an option."""
    return _OPTION_REPLY.pack(_OPTION_REPLY_MAGIC, option, kind, len(payload)) + payload


def listed(name: str) -> bytes:
    """Return the payload of SERVER."""
    encoded = name.encode()
    return _U32.pack(len(encoded)) + encoded


def information(size: int, transmission_flags: int) -> bytes:
    """Return the payload of INFORMATION that tells of an export of `size` bytes."""
    return _EXPORT.pack(_INFO_EXPORT, size, transmission_flags)


def block_sizes() -> bytes:
    """Return the payload of INFORMATION that tells of the sizes of requests: any byte may be asked for."""
    return _BLOCK_SIZE.pack(_INFO_BLOCK_SIZE, 1, PREFERRED_BLOCK, MAX_PAYLOAD)


def meta_context() -> bytes:
    """Return the payload of META_CONTEXT: there is one context."""
    return _U32.pack(ALLOCATION_ID) + ALLOCATION.encode()


def old_style_export(size: int, transmission_flags: int, zeroes: bool) -> bytes:
    """Return the answer to EXPORT_NAME. zeroes: the client wants 124 of them behind it."""
    return _U64.pack(size) + _U16.pack(transmission_flags) + bytes(124 if zeroes else 0)


def simple_reply(cookie: int, error: int = 0) -> bytes:
    """Return a simple reply; what was read follows."""
    return _SIMPLE_REPLY.pack(_SIMPLE_MAGIC, error, cookie)


def data(cookie: int, start: int, length: int, last: bool) -> bytes:
    """Return the head of a chunk with `length` bytes of content, which follow."""
    return _CHUNK.pack(_CHUNK_MAGIC, _DONE * last, _DATA_CHUNK, cookie, _U64.size + length) + _U64.pack(start)


def hole(cookie: int, start: int, length: int, last: bool) -> bytes:
    """Return a chunk that says that a range (bytes) reads as zeros."""
    return _CHUNK.pack(_CHUNK_MAGIC, _DONE * last, _HOLE_CHUNK, cookie, _HOLE.size) + _HOLE.pack(start, length)


def done(cookie: int) -> bytes:
    """Return the chunk that ends a reply without content."""
    return _CHUNK.pack(_CHUNK_MAGIC, _DONE, _NONE_CHUNK, cookie, 0)


def failure(cookie: int, error: int) -> bytes:
    """Return the chunk that ends a reply with an error."""
    return _CHUNK.pack(_CHUNK_MAGIC, _DONE, _ERROR_CHUNK, cookie, _ERROR.size) + _ERROR.pack(error, 0)


def status(cookie: int, extents: Iterable[tuple[int, int]]) -> bytes:
    """Return the whole reply to BLOCK_STATUS. extents: (length in bytes, state)."""
    payload = _U32.pack(ALLOCATION_ID) + b"".join(_EXTENT.pack(length, state) for length, state in extents)
    return _CHUNK.pack(_CHUNK_MAGIC, _DONE, _STATUS_CHUNK, cookie, len(payload)) + payload
