"""The repository's JSON documents: settings and manifests. Each says which format it is in."""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import msgspec

from blockferry import errors

Document = TypeVar("Document", bound=msgspec.Struct)


_decoders: dict[type, Any] = {}
_makes_decoder = threading.Lock()


def _decoder(kind: type[Document]) -> msgspec.json.Decoder[Document]:
    """
    Return what decodes documents of a kind. It is made by one thread at a time: where several threads learn of a type
    at once, msgspec 0.22 shows one of them what another has not finished, and the process dies of a null pointer.
    """
    with _makes_decoder:
        if kind not in _decoders:
            _decoders[kind] = msgspec.json.Decoder(kind)
        decoder: msgspec.json.Decoder[Document] = _decoders[kind]
        return decoder


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
        found = _decoder(_Versioned).decode(data).format
        if found != known:
            raise errors.RepositoryError(
                f"{where} is in format {found}; this version of Blockferry reads format {known}.",
                "Use the version of Blockferry that wrote it, or a later one.",
            )
        return _decoder(kind).decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise errors.Damaged(f"{where} is damaged: {error}.") from None
