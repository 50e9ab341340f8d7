"""Whether a controller and this agent are of versions that work together."""

from __future__ import annotations

from collections.abc import Iterable

import blockferry_proto
from blockferry_agent import __version__, errors
from blockferry_proto import PROTOCOL, PROTOCOL_KEY

_SILENT = 1
"""The protocol of controllers that do not say theirs: from before it was said."""


def check(metadata: Iterable[tuple[str, str | bytes]]) -> None:
    """Raise InvalidRequest when the controller, by the metadata of its call, is too far from this agent."""
    said = dict(metadata).get(PROTOCOL_KEY, str(_SILENT))
    theirs = int(said) if isinstance(said, str) and said.isdecimal() else 0
    if blockferry_proto.understand(theirs, PROTOCOL):
        return
    raise errors.InvalidRequest(
        f"This agent is version {__version__} and speaks protocol {PROTOCOL}, the controller protocol {theirs}: "
        "only neighbouring protocols work together.",
        "Run `blockferry agent deploy` for this host."
        if theirs > PROTOCOL
        else "Upgrade Blockferry on the controller, then run `blockferry agent deploy` for this host.",
    )
