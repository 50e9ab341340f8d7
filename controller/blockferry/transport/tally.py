"""What came of a reading, counted, and compared with what the agent says that it sent."""

from __future__ import annotations

from blockferry_agent import errors as agent_errors
from blockferry_agent.blocks import Block, Summary


class Tally:
    """
    Counts the blocks of one reading.

    where: names the agent in the middle of a sentence.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._blocks = self._covered = self._moved = 0

    def add(self, block: Block) -> None:
        """Count a block, which is not compressed any more."""
        self._blocks += 1
        self._covered += block.length
        self._moved += len(block.data)

    def check(self, summary: Summary) -> None:
        """Raise ProtocolError when something is missing."""
        if (summary.blocks, summary.moved) != (self._blocks, self._moved) or self._covered < summary.dirty:
            raise agent_errors.ProtocolError(
                f"{self._where[0].upper()}{self._where[1:]} sent less than it counted.",
                "Run the backup again; if it stays, deploy the agent again.",
            )
