"""The keys of one encrypted repository: who opens it, listed and changed."""

from __future__ import annotations

from blockferry import errors
from blockferry.repository import keys, keytext, settings
from blockferry.repository import store as stores
from blockferry.repository.keys import KeyFile, MasterKey, Passphrase, Secret, WrappedKey
from blockferry.repository.settings import Settings
from blockferry.repository.store import Store


class Keyring:
    """
    The keys of a repository that was opened with one of them.

    used: the key that opened it; None when the master key did.
    """

    def __init__(self, place: Store, found: Settings, used: WrappedKey | None, master: bytes) -> None:
        self.used = used
        self._place = place
        self._settings = found
        self._master = master

    @classmethod
    def open(cls, url: str, secret: Secret | None) -> Keyring:
        """Open the keys of the repository at `url`. Raises WrongKey, RepositoryError, also when it has no keys."""
        place = stores.connect(url)
        found = settings.read(place)
        if found.encryption is None:
            raise errors.RepositoryError(
                f"The repository {place.url} is not encrypted: it has no keys.",
                "Only a new repository can be: `blockferry repository init --encrypt`.",
            )
        return cls(place, found, *_opened(place, found, secret))

    def list(self) -> list[WrappedKey]:
        """Return all keys, oldest first."""
        return sorted(keys.all_of(self._place, self._settings.id), key=lambda key: (key.created, key.id))

    def add(self, secret: Passphrase | KeyFile) -> WrappedKey:
        """Let one more secret open the repository."""
        return keys.add(self._place, self._settings.id, self._master, secret)

    def change(self, secret: Passphrase | KeyFile) -> WrappedKey:
        """
        Let another secret open the repository in place of the one that did.

        The old one goes last: after a failure both open it. Raises Conflict when the master key opened it.
        """
        if self.used is None:
            raise errors.Conflict(
                f"The repository {self._place.url} was opened with its master key, which cannot be changed.",
                "Add a key and remove the old one.",
            )
        added = self.add(secret)
        self.remove(self.used.id)
        return added

    def remove(self, key_id: str) -> None:
        """Delete a key. Who had it opened may have kept the master key. Raises NotFound, Conflict for the last one."""
        keys.remove(self._place, self._settings.id, key_id)

    def export(self) -> str:
        """Return the master key as text that can be printed. It opens the repository for ever."""
        return keytext.encode("master key", self._master)


def master_key(place: Store, found: Settings, secret: Secret | None) -> bytes | None:
    """
    Return the master key of a repository, None when it is not encrypted. found: its settings.

    Raises WrongKey; also when there is a secret and nothing to open: whoever may write to the storage could have put a
    plain repository there, to be given what was meant to be encrypted.
    """
    if found.encryption is not None:
        return _opened(place, found, secret)[1]
    if secret is not None:
        raise errors.WrongKey(
            f"The repository {place.url} is not encrypted, but the configuration has a key for it.",
            "Check repository.url; or take the key out of the configuration and the environment.",
        )
    return None


def _opened(place: Store, found: Settings, secret: Secret | None) -> tuple[WrappedKey | None, bytes]:
    if secret is None:
        raise errors.WrongKey(
            f"The repository {place.url} is encrypted.",
            "Set repository.passphrase_file or repository.key_file, or BLOCKFERRY_REPOSITORY_PASSPHRASE.",
        )
    used, master = (None, secret.key) if isinstance(secret, MasterKey) else keys.unlock(place, found.id, secret)
    settings.prove(found, master, f"{place.url}")
    return used, master
