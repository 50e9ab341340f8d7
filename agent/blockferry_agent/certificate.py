"""What the agent wants to know of a certificate. Python's ssl tells it of a peer's only, and never of its own."""

from __future__ import annotations

import hashlib
import ssl
from datetime import datetime, timezone

# ASN.1 (X.690): tags of what stands before the validity in a certificate (RFC 5280, 4.1), and of times.
_SEQUENCE, _VERSION = 0x30, 0xA0
_TIME_FORMATS = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}


def from_pem(pem: bytes) -> bytes:
    """Return the first certificate of a PEM file, as DER. Raises ValueError."""
    text = pem.decode("ascii")
    start, end = text.find(ssl.PEM_HEADER), text.find(ssl.PEM_FOOTER)
    return ssl.PEM_cert_to_DER_cert(text[max(start, 0) : end + len(ssl.PEM_FOOTER)])


def fingerprint(der: bytes) -> str:
    """Return the SHA-256 of a certificate in hex: its name in a list of revoked ones."""
    return hashlib.sha256(der).hexdigest()


def expiry(der: bytes) -> int:
    """Return the last second at which a certificate is good, in seconds since 1970. Raises ValueError."""
    try:
        tag, to_be_signed, _ = _element(_element(der)[1])
        _, _, rest = _element(to_be_signed)  # the version, or the serial number where there is none
        if to_be_signed[0] == _VERSION:
            _, _, rest = _element(rest)
        for _ in ("signature algorithm", "issuer"):
            _, _, rest = _element(rest)
        tag, validity, _ = _element(rest)
        _, _, rest = _element(validity)
        kind, text, _ = _element(rest)
        if tag != _SEQUENCE:
            raise ValueError("no validity where it should be")
        ends = datetime.strptime(text.decode("ascii"), _TIME_FORMATS[kind])
    except (IndexError, KeyError) as error:
        raise ValueError("not a certificate") from error
    return int(ends.replace(tzinfo=timezone.utc).timestamp())


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Return the tag and the content of the first element in `data`, and what stands behind it."""
    tag, length, start = data[0], data[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start], "big")
    return tag, data[start : start + length], data[start + length :]
