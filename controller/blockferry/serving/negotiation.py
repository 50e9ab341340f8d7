"""
The first half of a client's connection: haggling over options until it chooses an export, or goes.

    greeting → [STARTTLS] → [STRUCTURED_REPLY → SET_META_CONTEXT] → GO      what libnbd and QEMU do
    greeting → EXPORT_NAME                                                  what old clients do
"""

from __future__ import annotations

import ssl
from typing import NamedTuple

from blockferry.serving import messages
from blockferry.serving.export import Export, Exports
from blockferry.serving.messages import Malformed, Option
from blockferry.serving.stream import Gone, Stream

_TIMEOUT = 20.0
"""Seconds for all of it."""
_MAX_OPTIONS = 64
"""Options that one client may send."""


class Agreement(NamedTuple):
    """
    What client and server agreed to.

    stream: to go on with.  structured: replies are structured.  allocation: BLOCK_STATUS may be asked.
    """

    stream: Stream
    export: Export
    structured: bool
    allocation: bool


class Negotiation:
    """
    One client's negotiation.

    stream: the connection; another one after STARTTLS.
    """

    def __init__(self, stream: Stream, exports: Exports, tls: ssl.SSLContext | None) -> None:
        """tls: None for clear text; else no export is told or given before STARTTLS."""
        self.stream = stream
        self._exports = exports
        self._tls = tls
        self._is_secure = False
        self._structured = False
        self._allocation_of: Export | None = None

    def run(self) -> Agreement | None:
        """Return the agreement, None when the client wanted none. Raises Gone, Malformed."""
        self.stream.within(_TIMEOUT)
        self.stream.send([messages.greeting()])
        flags = messages.flags(self.stream.receive(messages.FLAGS_LENGTH))
        export = self._options(bool(flags & messages.NO_ZEROES))
        self.stream.within(None)
        if export is None:
            return None
        return Agreement(self.stream, export, self._structured, self._allocation_of is export)

    def _options(self, no_zeroes: bool) -> Export | None:
        for _ in range(_MAX_OPTIONS):
            option = messages.option(self.stream.receive(messages.OPTION_LENGTH))
            payload = self.stream.receive(option.length)
            if option.number == messages.ABORT:
                self._reply(option, messages.ACK)
                return None
            if option.number == messages.EXPORT_NAME:
                return self._old_style(payload, no_zeroes)
            try:
                chosen = self._answer(option, payload)
            except Malformed:
                # Its length was right, so the client is understood from the next option on.
                self._reply(option, messages.INVALID)
                continue
            if chosen is not None:
                return chosen
        raise Malformed("too many options")

    def _answer(self, option: Option, payload: bytearray) -> Export | None:
        """Answer an option; return the export when that ends the negotiation. Raises Malformed, Gone."""
        if option.number == messages.STARTTLS:
            self._start_tls(option, payload)
        elif self._tls is not None and not self._is_secure:
            self._reply(option, messages.TLS_REQUIRED)
        elif option.number == messages.LIST:
            self._list(option, payload)
        elif option.number == messages.STRUCTURED_REPLY:
            _expect_nothing(payload)
            self._structured = True
            self._reply(option, messages.ACK)
        elif option.number in (messages.LIST_META_CONTEXT, messages.SET_META_CONTEXT):
            self._meta_contexts(option, messages.queries(payload))
        elif option.number in (messages.INFO, messages.GO):
            export = self._tell_of_export(option, messages.go(payload))
            return export if option.number == messages.GO else None
        else:
            self._reply(option, messages.UNSUPPORTED)
        return None

    def _start_tls(self, option: Option, payload: bytearray) -> None:
        _expect_nothing(payload)
        if self._is_secure:
            raise Malformed("STARTTLS in TLS")
        if self._tls is None:
            self._reply(option, messages.POLICY)
            return
        self._reply(option, messages.ACK)
        self.stream = self.stream.start_tls(self._tls)
        self._is_secure = True
        # What was agreed to in clear text may have been somebody else's words.
        self._structured, self._allocation_of = False, None

    def _list(self, option: Option, payload: bytearray) -> None:
        _expect_nothing(payload)
        for export in self._exports:
            self._reply(option, messages.SERVER, messages.listed(export.name))
        self._reply(option, messages.ACK)

    def _meta_contexts(self, option: Option, asked: messages.Queries) -> None:
        if not self._structured:
            raise Malformed("meta contexts without structured replies")
        export = self._exports.named(asked.export)
        setting = option.number == messages.SET_META_CONTEXT
        if setting:
            self._allocation_of = None
        if export is None:
            self._reply(option, messages.UNKNOWN)
            return
        known = messages.ALLOCATION in asked.contexts
        if not setting:
            known = known or not asked.contexts or "base:" in asked.contexts
        if known:
            self._reply(option, messages.META_CONTEXT, messages.meta_context())
            if setting:
                self._allocation_of = export
        self._reply(option, messages.ACK)

    def _tell_of_export(self, option: Option, name: str) -> Export | None:
        export = self._exports.named(name)
        if export is None:
            self._reply(option, messages.UNKNOWN)
            return None
        flags = transmission_flags(export, self._structured)
        self._reply(option, messages.INFORMATION, messages.information(export.disk.size, flags))
        self._reply(option, messages.INFORMATION, messages.block_sizes())
        self._reply(option, messages.ACK)
        return export

    def _old_style(self, payload: bytearray, no_zeroes: bool) -> Export:
        """Answer EXPORT_NAME, which knows no refusal but hanging up. Raises Gone, Malformed."""
        if self._tls is not None and not self._is_secure:
            raise Gone("the client asked for an export before STARTTLS")
        name = messages.text(payload)
        export = self._exports.named(name)
        if export is None:
            raise Gone(f"there is no export {name!r}")
        flags = transmission_flags(export, self._structured)
        self.stream.send([messages.old_style_export(export.disk.size, flags, not no_zeroes)])
        return export

    def _reply(self, option: Option, kind: int, payload: bytes = b"") -> None:
        self.stream.send([messages.option_reply(option.number, kind, payload)])


def transmission_flags(export: Export, structured: bool) -> int:
    """Return what clients may do with an export. All connections see the same bytes, so there may be several."""
    flags = messages.HAS_FLAGS | messages.CAN_MULTI_CONN
    if structured:
        flags |= messages.SEND_DF
    if export.disk.read_only:
        return flags | messages.READ_ONLY
    return flags | messages.SEND_FLUSH | messages.SEND_FUA | messages.SEND_TRIM | messages.SEND_WRITE_ZEROES


def _expect_nothing(payload: bytearray) -> None:
    if payload:
        raise Malformed("an option with a payload that it does not have")
