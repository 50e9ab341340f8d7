"""What a block holds, taken out of what came over the wire."""

from __future__ import annotations

import threading

import zstandard

from blockferry_agent import errors as agent_errors
from blockferry_agent.blocks import MAX_WINDOW, Block


class _Codec(threading.local):
    """zstandard's objects serve one thread each."""

    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor()


_codec = _Codec()


def plain(block: Block) -> Block:
    """
    Return the block with its content as it is on the disk. Whether it is the right one, its receiver checks.

    Raises ProtocolError for what cannot be expanded to the block's length. Needs no more memory than that.
    """
    if not block.compressed:
        return block
    try:
        if block.length > MAX_WINDOW or zstandard.frame_content_size(block.data) != block.length:
            raise zstandard.ZstdError("it has another length")
        data = _codec.decompressor.decompress(block.data, max_output_size=block.length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise agent_errors.ProtocolError(
            f"The agent sent a block at {block.start} that cannot be expanded ({error}).",
            "Run the backup again; if it stays, deploy the agent again.",
        ) from None
    return block._replace(data=data, compressed=False)
