"""
The keys that open an encrypted repository: each is the master key, wrapped by a passphrase or by a key file.

    keys/<key-id>.json      {"by": how, "wrapped": nonce and encrypted master key, …}

Several may be there at once; changing one rewrites nothing else. The master key itself, printed by `key export`, opens
the repository without any of them.
"""

from __future__ import annotations

import logging
import os
import secrets
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from blockferry import errors, files
from blockferry.repository import documents, keytext, layout
from blockferry.repository.store import Store
from blockferry_agent.units import KiB

FORMAT: Final = 1

_MAX_ENCODED = 64 * KiB
_NONCE = 12

_COST = 2**17
"""scrypt's N, with r = 8 and p = 1: 128 MiB and about half a second for each guess."""

Hex = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{2})+\Z")]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Passphrase:
    """What a person can remember, or a file holds."""

    text: str = field(repr=False)


@dataclass(frozen=True)
class KeyFile:
    """32 random bytes that a file holds as text."""

    key: bytes = field(repr=False)

    @classmethod
    def new(cls) -> KeyFile:
        """Return one that nobody has seen yet."""
        return cls(secrets.token_bytes(keytext.LENGTH))

    def save(self, path: Path) -> None:
        """Write it to a new file that its owner alone may read, durable. Raises ConfigError, also if it is there."""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(keytext.encode("key file", self.key))
            files.make_durable(path)
            files.make_durable(path.parent)
        except OSError as error:
            raise errors.ConfigError(f"The key file {path} cannot be made: {error.strerror}.") from None


@dataclass(frozen=True)
class MasterKey:
    """The master key itself, as `key export` printed it."""

    key: bytes = field(repr=False)


Secret = Passphrase | KeyFile | MasterKey


class ByPassphrase(msgspec.Struct, frozen=True, tag="passphrase", tag_field="kind"):
    """Wrapped by what scrypt makes of a passphrase (UTF-8, NFC). n, r, p: its costs."""

    salt: Hex
    # Bounds, so that nobody who may write to the storage can make this machine run out of memory or time.
    n: Annotated[int, msgspec.Meta(ge=2, le=2**20)]
    r: Annotated[int, msgspec.Meta(ge=1, le=16)]
    p: Annotated[int, msgspec.Meta(ge=1, le=4)]


class ByKeyFile(msgspec.Struct, frozen=True, tag="key file", tag_field="kind"):
    """Wrapped by the key in a key file, as it is."""


class WrappedKey(msgspec.Struct, frozen=True, kw_only=True):
    """
    The master key, wrapped.

    id: of this key.  repository: id of the one that it opens.  wrapped: nonce, then AES-256-GCM of the master key; both
    ids are authenticated.
    """

    format: Literal[1] = FORMAT
    id: str
    repository: str
    created: datetime
    by: ByPassphrase | ByKeyFile
    wrapped: Hex

    @property
    def kind(self) -> str:
        """What opens it, for people."""
        return "passphrase" if isinstance(self.by, ByPassphrase) else "key file"


def new_master() -> bytes:
    """Return a new master key."""
    return secrets.token_bytes(keytext.LENGTH)


def load(path: Path) -> KeyFile | MasterKey:
    """Return what a file holds: a key file, or an exported master key. Raises ConfigError."""
    try:
        with path.open(encoding="utf-8") as file:
            kind, key = keytext.decode(file.read(_MAX_ENCODED))
    except OSError as error:
        raise errors.ConfigError(f"The key file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise errors.ConfigError(f"The key file {path} cannot be used: it is not text.") from None
    except ValueError as error:
        raise errors.ConfigError(f"The key file {path} cannot be used: {error}.") from None
    return KeyFile(key) if kind == "key file" else MasterKey(key)


def add(store: Store, repository_id: str, master: bytes, secret: Passphrase | KeyFile) -> WrappedKey:
    """Wrap the master key for one more secret, durable when this returns. Raises RepositoryError."""
    by: ByPassphrase | ByKeyFile = ByKeyFile()
    if isinstance(secret, Passphrase):
        by = ByPassphrase(secrets.token_hex(16), _COST, 8, 1)
    key_id = secrets.token_hex(4)
    nonce = secrets.token_bytes(_NONCE)
    wrapped = AESGCM(_wrapping_key(secret, by)).encrypt(nonce, master, _bound_to(repository_id, key_id))
    key = WrappedKey(
        id=key_id, repository=repository_id, created=datetime.now(UTC), by=by, wrapped=(nonce + wrapped).hex()
    )
    with store.batch() as batch:
        batch.commit(layout.key(key_id), documents.encode(key))
    return key


def all_of(store: Store, repository_id: str) -> Iterator[WrappedKey]:
    """
    Generate the keys that open a repository.

    Warns of what is none, and goes on: that the others still open it is what several are for.
    """
    for found in store.listing(layout.KEYS):
        where = f"{store.url}/{found.name}"
        try:
            key = documents.decode(store.get(found.name, _MAX_ENCODED), WrappedKey, FORMAT, where)
        except errors.NotFound:
            # Removed since it was listed.
            continue
        except errors.Damaged as error:
            _log.warning("%s", error)
            continue
        if key.repository == repository_id and found.name == layout.key(key.id):
            yield key
        else:
            _log.warning("%s is the key of another repository, or of another name.", where)


def unlock(store: Store, repository_id: str, secret: Passphrase | KeyFile) -> tuple[WrappedKey, bytes]:
    """Return the key that a secret opens, and the master key. Raises WrongKey when it opens none, RepositoryError."""
    kind = ByPassphrase if isinstance(secret, Passphrase) else ByKeyFile
    for key in all_of(store, repository_id):
        if isinstance(key.by, kind):
            wrapped = bytes.fromhex(key.wrapped)
            cipher = AESGCM(_wrapping_key(secret, key.by))
            try:
                return key, cipher.decrypt(wrapped[:_NONCE], wrapped[_NONCE:], _bound_to(repository_id, key.id))
            except (InvalidTag, ValueError):
                continue
    what = "passphrase" if isinstance(secret, Passphrase) else "key file"
    raise errors.WrongKey(
        f"The {what} does not open the repository {store.url}.",
        "Set repository.passphrase_file or repository.key_file to what it was made with; an exported master key is a "
        "key file, too.",
    )


def remove(store: Store, repository_id: str, key_id: str) -> None:
    """Delete a key. Raises NotFound, Conflict when it is the last one, RepositoryError."""
    ids = {key.id for key in all_of(store, repository_id)}
    if key_id not in ids:
        raise errors.NotFound(
            f"The repository {store.url} has no key {key_id}.", "See `blockferry repository key list`."
        )
    if len(ids) == 1:
        raise errors.Conflict(
            f"Key {key_id} is the last one of the repository {store.url}: without it nothing could be read.",
            "Add another one first.",
        )
    store.delete(layout.key(key_id))


def _wrapping_key(secret: Passphrase | KeyFile, by: ByPassphrase | ByKeyFile) -> bytes:
    if isinstance(secret, KeyFile):
        return secret.key
    assert isinstance(by, ByPassphrase)
    scrypt = Scrypt(salt=bytes.fromhex(by.salt), length=keytext.LENGTH, n=by.n, r=by.r, p=by.p)
    # One passphrase may be typed as different characters that look the same.
    return scrypt.derive(unicodedata.normalize("NFC", secret.text).encode())


def _bound_to(repository_id: str, key_id: str) -> bytes:
    return f"{repository_id} {key_id}".encode()
