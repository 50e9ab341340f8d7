"""The wire contract of Blockferry's agent: agent.proto, and the stubs generated from it."""

PROTOCOL = 2
"""
Version of the contract (`DescribeReply.protocol`). Raised when a peer may ask for what the one before did not know.

    1    reading: DescribeDisk, ListExtents, ReadBlocks, OpenSocket
    2    writing and comparing: WriteBlocks, CompareBlocks; metadata blockferry-protocol and retry-after
"""

PROTOCOL_KEY = "blockferry-protocol"
"""Metadata of every call: the protocol of the controller."""


def understand(one: int, other: int) -> bool:
    """Return whether two versions of the contract work together: the same one, or neighbours."""
    return abs(one - other) <= 1
