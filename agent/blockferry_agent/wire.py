"""
Blocks as gRPC messages, without the copies that protobuf makes of their data.

A block's content is nearly all of its message. protobuf copies it into a message and once more into the message's
bytes, and the same again at the other end: half of what a transfer cost (CHANGELOG has the figures). Here the content
goes straight from the reader's buffer into the bytes that gRPC sends, and is a view of those that it received. On the
wire it is what agent.proto says, so protobuf can read what this writes; what it writes is read here, too, as long as
the content is the last field, else by protobuf.

The encoding: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from blockferry_agent import errors
from blockferry_agent.blocks import Block, Data, Kind, Summary
from blockferry_agent.units import KiB, MiB
from blockferry_proto import agent_pb2

METHOD = "/blockferry.v1.Agent/ReadBlocks"
WRITE_METHOD = "/blockferry.v1.Agent/WriteBlocks"
"""The methods whose replies, and whose requests, these are."""

LARGE_MESSAGES = (
    ("grpc.http2.max_frame_size", 4 * MiB),
    ("grpc.experimental.tcp_min_read_chunk_size", 256 * KiB),
    ("grpc.experimental.tcp_max_read_chunk_size", 4 * MiB),
    ("grpc.experimental.tcp_read_chunk_size", 1 * MiB),
)
"""Options of gRPC, for both ends: its own are for small messages, and cost a tenth more of the processors' time."""

_BLOCK_TAG = b"\x0a"  # ReadBlocksReply.block
_DATA_TAGS = {False: b"\x2a", True: b"\x32"}  # Block.data, Block.zstd
_LENGTHS = {0x2A: False, 0x32: True}

_KINDS = {
    Kind.DATA: agent_pb2.Block.KIND_DATA,
    Kind.ZERO: agent_pb2.Block.KIND_ZERO,
    Kind.SAME: agent_pb2.Block.KIND_SAME,
}
_KINDS_BACK = {number: kind for kind, number in _KINDS.items()}


def encode(reply: Block | Summary) -> bytes:
    """Return the ReadBlocksReply for a block or for the summary."""
    if isinstance(reply, Summary):
        return agent_pb2.ReadBlocksReply(summary=_summary(reply)).SerializeToString()
    return encode_block(reply)


def encode_block(block: Block) -> bytes:
    """Return the ReadBlocksReply for a block, which is also the WriteBlocksRequest for it."""
    head = agent_pb2.Block(
        kind=_KINDS[block.kind], start=block.start, length=block.length, xxh3=block.digest
    ).SerializeToString()
    if block.data:
        head += _DATA_TAGS[block.compressed] + _varint(len(block.data))
    return b"".join((_BLOCK_TAG, _varint(len(head) + len(block.data)), head, block.data))


def decode(message: bytes) -> Block | Summary:
    """
    Return what is in a ReadBlocksReply. A block's data is a view of `message`.

    Raises ProtocolError for a message that is none.
    """
    try:
        split = _split(message)
        if split is None:
            return _decoded(agent_pb2.ReadBlocksReply.FromString(message))
        head, compressed, data = split
        return _block(agent_pb2.Block.FromString(head), compressed, data)
    except (DecodeError, IndexError, KeyError):
        raise errors.ProtocolError("The agent sent a message that is none.", "Deploy the agent again.") from None


def decode_request(message: bytes) -> Block | agent_pb2.WriteBlocksRequest:
    """
    Return what is in a WriteBlocksRequest: its block, whose data is a view of `message`, or what else it is.

    Raises InvalidRequest for a message that is none.
    """
    try:
        split = _split(message)
        if split is not None:
            head, compressed, data = split
            return _block(agent_pb2.Block.FromString(head), compressed, data)
        request = agent_pb2.WriteBlocksRequest.FromString(message)
        if request.WhichOneof("request") != "block":
            return request
        return _block(request.block, bool(request.block.zstd), request.block.zstd or request.block.data)
    except (DecodeError, IndexError, KeyError):
        raise errors.InvalidRequest("The controller sent a message that is none.") from None


def _split(message: bytes) -> tuple[bytes, bool, memoryview] | None:
    """Return a block's fields before its content, whether that is compressed, and the content; None: not such."""
    if message[:1] != _BLOCK_TAG:
        return None
    length, head_start = _read_varint(message, 1)
    if head_start + length != len(message):
        return None
    at = head_start
    while at < len(message):
        tag = message[at]
        if tag in _LENGTHS:
            length, start = _read_varint(message, at + 1)
            if start + length != len(message):
                return None
            return message[head_start:at], _LENGTHS[tag], memoryview(message)[start:]
        value, after = _read_varint(message, at + 1)
        if tag & 0x87 == 0:  # a number of a field below 16
            at = after
        elif tag & 0x87 == 2:  # bytes of such a field
            at = after + value
        else:
            return None
    return None


def _decoded(reply: agent_pb2.ReadBlocksReply) -> Block | Summary:
    kind = reply.WhichOneof("reply")
    if kind == "summary":
        sent = reply.summary
        return Summary(sent.blocks, sent.dirty_bytes, sent.read_bytes, sent.moved_bytes, sent.stalled_seconds)
    if kind is None:
        raise errors.ProtocolError("The agent sent a message without content.", "Deploy the agent again.")
    block = reply.block
    return _block(block, bool(block.zstd), block.zstd or block.data)


def _block(head: agent_pb2.Block, compressed: bool, data: Data) -> Block:
    return Block(head.start, head.length, _KINDS_BACK[head.kind], head.xxh3, data, compressed)


def _summary(summary: Summary) -> agent_pb2.Summary:
    return agent_pb2.Summary(
        blocks=summary.blocks,
        dirty_bytes=summary.dirty,
        read_bytes=summary.read,
        moved_bytes=summary.moved,
        stalled_seconds=summary.stalled,
    )


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """Return a number and the place behind it. Raises IndexError at the message's end."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError("a number of more than 64 bits")
