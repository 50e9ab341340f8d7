"""Blocks as messages: what we write protobuf can read, and the other way round."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockferry_agent import errors, wire
from blockferry_agent.blocks import Block, Kind, Summary
from blockferry_proto import agent_pb2

UINT64 = st.integers(0, 2**64 - 1)
DIGESTS = st.binary(min_size=16, max_size=16)
BLOCKS = st.one_of(
    st.builds(
        Block,
        UINT64,
        UINT64,
        st.just(Kind.DATA),
        DIGESTS,
        st.binary(min_size=1, max_size=300),
        compressed=st.booleans(),
    ),
    st.builds(Block, UINT64, UINT64, st.sampled_from([Kind.ZERO, Kind.SAME]), compressed=st.just(False)),
)
SUMMARIES = st.builds(Summary, UINT64, UINT64, UINT64, UINT64, st.floats(0, 1e9))


@given(BLOCKS)
def test_a_block_is_what_the_contract_says(block: Block) -> None:
    message = agent_pb2.ReadBlocksReply.FromString(wire.encode(block._replace(data=memoryview(block.data))))
    sent = message.block
    assert (sent.start, sent.length, sent.xxh3) == (block.start, block.length, block.digest)
    assert (sent.zstd if block.compressed else sent.data) == block.data


@given(st.one_of(BLOCKS, SUMMARIES))
def test_what_was_sent_arrives(reply: Block | Summary) -> None:
    assert wire.decode(wire.encode(reply)) == reply


@given(BLOCKS)
def test_protobuf_may_have_written_it(block: Block) -> None:
    message = agent_pb2.ReadBlocksReply.FromString(wire.encode(block))
    assert wire.decode(message.SerializeToString()) == block
    # Fields in another order are the same message.
    last = agent_pb2.ReadBlocksReply(block=agent_pb2.Block(kind=message.block.kind))
    message.block.ClearField("kind")
    assert wire.decode(message.SerializeToString() + last.SerializeToString()) == block


@given(st.binary(max_size=100))
def test_garbage_is_an_error(message: bytes) -> None:
    with contextlib.suppress(errors.ProtocolError):
        wire.decode(message)


@given(BLOCKS, st.data())
def test_a_cut_message_is_an_error_or_another_block(block: Block, data: st.DataObject) -> None:
    message = wire.encode(block)
    cut = message[: data.draw(st.integers(0, len(message) - 1))]
    with pytest.raises(errors.ProtocolError):
        wire.decode(cut)
