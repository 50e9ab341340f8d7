"""The repository's JSON documents: settings and manifests. Each says which format it is in."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from blockferry import errors

Document = TypeVar("Document", bound=msgspec.Struct)


class _Versioned(msgspec.Struct):
    """What every format of every document has."""

    format: int


def encode(document: msgspec.Struct) -> bytes:
    """Return the document as it is stored: JSON that a person can read."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def decode(data: bytes, kind: type[Document], known: int, where: str) -> Document:
    """
    Return the document in `data`, of the one known format. where: the file, for messages.

    Raises Damaged, or RepositoryError when it is of another format.
    """
    try:
        found = msgspec.json.decode(data, type=_Versioned).format
        if found != known:
            raise errors.RepositoryError(
                f"{where} is in format {found}; this version of Blockferry reads format {known}.",
                "Use the version of Blockferry that wrote it, or a later one.",
            )
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise errors.Damaged(f"{where} is damaged: {error}.") from None
