"""What comes in over a WriteBlocks stream: the disk, its blocks, the end."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator

import grpc

from blockferry_agent import errors, wire
from blockferry_agent.blocks import Block
from blockferry_agent.units import KiB
from blockferry_proto import agent_pb2

AHEAD = 512 * KiB
"""Bytes of messages that are taken in before they are wanted; one more message, however long, may come on top."""


PATIENCE = 60.0
"""Seconds in which a stream must have said which disk it is for: until then it only holds a thread."""


class Inbox:
    """
    An iterator of a stream's blocks, once the `target` was taken from it. It ends when the stream has said that it is
    complete. Used by one thread at a time; who made it closes it.

    A thread takes messages in, a little ahead, so that whoever waits for the next one can be interrupted: gRPC itself
    lets nobody go before there is one, or the call has ended.

    messages: the call's requests. The thread ends with them, or after `close` with the next one of them.
    """

    def __init__(self, messages: Iterator[bytes]) -> None:
        self._messages = messages
        self._received = 0
        self._is_complete = False
        self._changed = threading.Condition()  # guards all below
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._is_cut_off = False  # no more messages come
        self._is_closed = False  # nobody wants more
        threading.Thread(target=self._take_in, name="inbox", daemon=True).start()

    def __iter__(self) -> Iterator[Block]:
        return self

    def __next__(self) -> Block:
        """Raises InvalidRequest for a message that should not be there, and for a stream that breaks off."""
        if self._is_complete:
            raise StopIteration
        request = wire.decode_request(self._next_message())
        if isinstance(request, Block):
            self._received += 1
            return request
        if request.WhichOneof("request") != "end" or request.end.blocks != self._received:
            raise errors.InvalidRequest(f"After {self._received} blocks came what does not belong there.")
        self._is_complete = True
        raise StopIteration

    def target(self) -> agent_pb2.WriteTarget:
        """Return the first message. Raises InvalidRequest for one that is something else, or does not come."""
        request = wire.decode_request(self._next_message(PATIENCE))
        if isinstance(request, Block) or request.WhichOneof("request") != "target":
            raise errors.InvalidRequest("A stream of blocks begins with the ticket of its disk.")
        return request.target

    def close(self) -> None:
        """Let nobody wait any more. From any thread; may be called again."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _next_message(self, timeout: float | None = None) -> bytes:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_cut_off or self._is_closed, timeout)
            if self._is_closed or not self._waiting:
                raise errors.InvalidRequest("The stream of blocks broke off before its end.")
            message = self._waiting.popleft()
            self._waiting_bytes -= len(message)
            self._changed.notify_all()
            return message

    def _take_in(self) -> None:
        # gRPC raises when the call was ended by the other side, or by this one.
        with contextlib.suppress(grpc.RpcError):
            while self._has_room():
                message = next(self._messages, None)
                if message is None:
                    break
                with self._changed:
                    self._waiting.append(message)
                    self._waiting_bytes += len(message)
                    self._changed.notify_all()
        with self._changed:
            self._is_cut_off = True
            self._changed.notify_all()

    def _has_room(self) -> bool:
        """Wait until one more message may be taken in; False when no more are wanted."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting_bytes < AHEAD or self._is_closed)
            return not self._is_closed
