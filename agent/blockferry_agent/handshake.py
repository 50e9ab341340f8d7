"""
The first half of an NBD connection: haggling over options until the server says GO.

    greeting → STRUCTURED_REPLY → [LIST_META_CONTEXT] → SET_META_CONTEXT → GO

The server is taken for hostile (`nbd`): strings, counts and sizes are checked before anything is allocated, and the
caller limits the time of it all.

The protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from blockferry_agent import errors
from blockferry_agent.stream import Stream

MAX_STRING = 4096
"""Longest string of the protocol, in bytes."""

MAX_REPLIES = 64
"""Replies that are accepted to one option."""

MAX_SIZE = 2**63 - 1

ALLOCATION = "base:allocation"
BITMAPS = "qemu:dirty-bitmap:"
"""Prefix of the context of a bitmap. Its name is never guessed: live, hybrid and cold backups name it differently."""

_GREETING = struct.Struct(">8s8sH")
_OPTION = struct.Struct(">8sII")
_REPLY = struct.Struct(">QIII")
_EXPORT = struct.Struct(">HQH")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")

_MAGIC = b"NBDMAGIC"
_OPTION_MAGIC = b"IHAVEOPT"
_REPLY_MAGIC = 0x0003E889045565A9
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_GO, _STRUCTURED_REPLY, _LIST_META_CONTEXT, _SET_META_CONTEXT = 7, 8, 9, 10
_ACK, _INFO, _META_CONTEXT = 1, 3, 4
_ERROR = 1 << 31
_ERROR_NAMES = {
    _ERROR | 1: "not supported",
    _ERROR | 2: "forbidden by policy",
    _ERROR | 3: "invalid",
    _ERROR | 5: "TLS required",
    _ERROR | 6: "no such export",
    _ERROR | 7: "server shutting down",
    _ERROR | 8: "block size required",
    _ERROR | 9: "too big",
}
_NO_SUCH_EXPORT = _ERROR | 6
_SHUTTING_DOWN = _ERROR | 7
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3


class Export(NamedTuple):
    """
    What the server agreed to.

    size: bytes.  flags: transmission flags.
    allocation, bitmap: ids of the meta contexts; bitmap is None when there is none, or nobody asked.
    """

    size: int
    flags: int
    allocation: int
    bitmap: int | None


class _Reply(NamedTuple):
    type: int
    payload: bytes


def negotiate(stream: Stream, where: str, export: str, bitmap: bool) -> Export:
    """
    Bring a new connection to the point where requests can be sent.

    where: names the server in errors.  export: its name.  bitmap: look for a dirty bitmap.

    Raises SourceGone, ProtocolError, TicketRefused when the server cannot do what is needed, and BitmapMissing when
    there is more than one bitmap.
    """
    return _Handshake(stream, where, export).run(bitmap)


class _Handshake:
    def __init__(self, stream: Stream, where: str, export: str) -> None:
        self._stream = stream
        self._where = where
        self._export = export
        self._name = _string(export)

    def run(self, bitmap: bool) -> Export:
        self._greet()
        self._ask_structured_replies()
        name = self._bitmap_context() if bitmap else None
        contexts = self._set_contexts([ALLOCATION] if name is None else [ALLOCATION, name])
        size, flags = self._go()
        return Export(size, flags, contexts[ALLOCATION], None if name is None else contexts[name])

    def _greet(self) -> None:
        magic, option_magic, flags = _GREETING.unpack(self._stream.receive(_GREETING.size))
        if (magic, option_magic) != (_MAGIC, _OPTION_MAGIC) or not flags & _FIXED_NEWSTYLE or not flags & _NO_ZEROES:
            raise self._nonsense("a greeting that is not newstyle NBD")
        self._stream.send(_U32.pack(_FIXED_NEWSTYLE | _NO_ZEROES))

    def _ask_structured_replies(self) -> None:
        for reply in self._ask(_STRUCTURED_REPLY, b""):
            raise self._nonsense(f"reply {reply.type} to STRUCTURED_REPLY")

    def _bitmap_context(self) -> str | None:
        """Return the name of the export's dirty bitmap context, None when it has no bitmap."""
        names = [name for _, name in self._contexts(_LIST_META_CONTEXT, [BITMAPS])]
        if any(not name.startswith(BITMAPS) for name in names):
            raise self._nonsense("contexts that nobody asked for")
        if len(names) > 1:
            raise errors.BitmapMissing(
                f"{self._where} offers {len(names)} dirty bitmaps, and only one can be the backup's.",
                "Read the whole disk instead.",
            )
        return names[0] if names else None

    def _set_contexts(self, names: list[str]) -> dict[str, int]:
        """Select the contexts; return their ids by name."""
        ids = {name: number for number, name in self._contexts(_SET_META_CONTEXT, names)}
        if sorted(ids) != sorted(names) or len(set(ids.values())) != len(names):
            raise self._nonsense("other meta contexts than were asked for")
        return ids

    def _contexts(self, option: int, queries: list[str]) -> Iterator[tuple[int, str]]:
        asked = b"".join(_string(query) for query in queries)
        for reply in self._ask(option, self._name + _U32.pack(len(queries)) + asked):
            if reply.type != _META_CONTEXT or not _U32.size < len(reply.payload) <= _U32.size + MAX_STRING:
                raise self._nonsense(f"reply {reply.type} of {len(reply.payload)} bytes about meta contexts")
            yield _U32.unpack_from(reply.payload)[0], self._text(reply.payload[_U32.size :])

    def _go(self) -> tuple[int, int]:
        """Enter transmission; return the export's size and flags."""
        # Block size is asked for because QEMU demands 512-byte alignment of clients that do not; its answer (1) is of
        # no interest.
        asked = self._name + _U16.pack(1) + _U16.pack(_INFO_BLOCK_SIZE)
        export: tuple[int, int] | None = None
        for reply in self._ask(_GO, asked):
            if reply.type != _INFO or len(reply.payload) < _U16.size:
                raise self._nonsense(f"reply {reply.type} of {len(reply.payload)} bytes to GO")
            if _U16.unpack_from(reply.payload)[0] != _INFO_EXPORT:
                continue
            if export is not None or len(reply.payload) != _EXPORT.size:
                raise self._nonsense("an export that is described wrongly")
            _, size, flags = _EXPORT.unpack(reply.payload)
            export = (size, flags)
        if export is None or export[0] > MAX_SIZE:
            raise self._nonsense("an export without a possible size")
        return export

    def _ask(self, option: int, data: bytes) -> Iterator[_Reply]:
        """Send an option; generate the replies before its ACK. Raises when the server says no."""
        self._stream.send(_OPTION.pack(_OPTION_MAGIC, option, len(data)) + data)
        for _ in range(MAX_REPLIES):
            magic, echo, kind, length = _REPLY.unpack(self._stream.receive(_REPLY.size))
            if magic != _REPLY_MAGIC or echo != option:
                raise self._nonsense("a reply to another option")
            if length > _U32.size + MAX_STRING:
                raise self._nonsense(f"an option reply of {length} bytes")
            payload = bytes(self._stream.receive(length))
            if kind == _ACK:
                if payload:
                    raise self._nonsense("an ACK with a payload")
                return
            if kind & _ERROR:
                raise self._refusal(kind)
            yield _Reply(kind, payload)
        raise self._nonsense(f"more than {MAX_REPLIES} replies to one option")

    def _refusal(self, kind: int) -> errors.Error:
        reason = _ERROR_NAMES.get(kind, f"error {kind & ~_ERROR}")
        message = f"{self._where} refuses export {self._export!r}: {reason}."
        if kind in (_NO_SUCH_EXPORT, _SHUTTING_DOWN):
            return errors.SourceGone(message, "See whether the VM stopped, or the backup ended.")
        return errors.TicketRefused(
            message, "Blockferry needs a server like QEMU's, with structured replies and meta contexts."
        )

    def _text(self, payload: bytes) -> str:
        try:
            return payload.decode()
        except UnicodeDecodeError:
            raise self._nonsense("a name that is not UTF-8") from None

    def _nonsense(self, what: str) -> errors.ProtocolError:
        return errors.ProtocolError(f"{self._where} sent {what}.", "See what serves that socket on the host.")


def _string(text: str) -> bytes:
    data = text.encode()
    return _U32.pack(len(data)) + data
