"""
The SSH keys by which a host is known beforehand. Nothing is trusted because it was met first, unless that is asked for.

    where a pin comes from                                    what it fixes
    engine: hosts/host/ssh/public_key  "ssh-ed25519 AAAA…"    type and key
    engine: hosts/host/ssh/fingerprint "SHA256:…"             key, of whatever type
    the operator's known_hosts                                type and key
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from blockferry import errors

if TYPE_CHECKING:
    from paramiko import PKey

# Key types, and by which names a server is asked for them; the best first.
_ALGORITHMS = {
    "ssh-ed25519": ("ssh-ed25519",),
    "ecdsa-sha2-nistp256": ("ecdsa-sha2-nistp256",),
    "ecdsa-sha2-nistp384": ("ecdsa-sha2-nistp384",),
    "ecdsa-sha2-nistp521": ("ecdsa-sha2-nistp521",),
    "ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256"),
}
_KNOWN = ", ".join(_ALGORITHMS)


class Pin(NamedTuple):
    """
    A key that a host may show.

    fingerprint: "SHA256:…", as ssh-keygen -l prints it.  type: of the key, "" when only the fingerprint is known.
    """

    fingerprint: str
    type: str = ""


def from_public_key(text: str) -> Pin:
    """Return the pin for a public key as in a .pub file, "TYPE BASE64 [COMMENT]". Raises DeployError."""
    kind, _, rest = text.strip().partition(" ")
    if kind not in _ALGORITHMS:
        raise errors.DeployError(f"{kind or 'Nothing'!r} is no type of SSH host key known here.", f"Known: {_KNOWN}.")
    try:
        blob = base64.b64decode(rest.partition(" ")[0], validate=True)
    except binascii.Error:
        blob = b""
    # A key begins with its type once more, as a string with its length before (RFC 4253, 6.6).
    if not blob.startswith(len(kind).to_bytes(4, "big") + kind.encode()):
        raise errors.DeployError(f"The SSH host key {text.strip()[:60]!r} is damaged.", "Copy it from the host again.")
    return Pin(_fingerprint(blob), kind)


def from_fingerprint(text: str) -> Pin:
    """Return the pin for a fingerprint as `ssh-keygen -l` prints it. Raises DeployError."""
    fingerprint = text.strip().rstrip("=")
    if not re.fullmatch(r"SHA256:[A-Za-z0-9+/]{43}", fingerprint):
        raise errors.DeployError(
            f"{text.strip()[:80]!r} is no SHA256 fingerprint of an SSH host key.",
            "On the host, `ssh-keygen -l -f /etc/ssh/ssh_host_ed25519_key.pub` prints one.",
        )
    return Pin(fingerprint)


def from_known_hosts(name: str, paths: Iterable[Path]) -> tuple[Pin, ...]:
    """Return the pins for a host in files as OpenSSH keeps them. name: "host", or "[host]:port" for another than 22."""
    import paramiko  # noqa: PLC0415 - takes long to import, and the engine knows most hosts' keys

    pins = []
    for path in paths:
        try:
            keys: Mapping[str, PKey] = paramiko.HostKeys(str(path)).lookup(name) or {}
        except (OSError, paramiko.SSHException):
            continue  # ssh itself goes on without a file that is not there, too
        pins += [Pin(_fingerprint(key.asbytes()), kind) for kind, key in keys.items() if kind in _ALGORITHMS]
    return tuple(pins)


def negotiations(pins: Collection[Pin]) -> list[tuple[str, ...]]:
    """
    Return the algorithms to ask a server for, one tuple for each connection that may be needed to see a pinned key.

    A server shows one key only, by the client's preference, so it must be asked for the type that is pinned. Where only
    fingerprints are known, each type is asked for in turn.
    """
    pinned = [kind for kind in _ALGORITHMS if kind in {pin.type for pin in pins}]
    if pinned:
        return [tuple(name for kind in pinned for name in _ALGORITHMS[kind])]
    return list(_ALGORITHMS.values())


def _fingerprint(blob: bytes) -> str:
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
