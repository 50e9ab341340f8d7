"""
Keys as text, to be printed, kept in a safe, and typed again.

    Blockferry key file 1
    1  K7QF-2MXA-90PT-D  8N
    2  …

32 bytes are four lines of 8 bytes: 13 digits of 5 bits, then two check digits over the line, its number and the kind of
key. So a slip of the pen is found, and in which line. Digits are Crockford's: no I, L, O, U; case, spaces and hyphens
do not matter, and O, I, L are read as the 0 and 1 that they look like.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

from blake3 import blake3

Kind = Literal["key file", "master key"]

LENGTH: Final = 32
"""Bytes of a key."""

_PART = 8
"""Bytes in a line."""
_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_VALUES = {digit: value for value, digit in enumerate(_DIGITS)} | {"O": 0, "I": 1, "L": 1}
_PART_DIGITS, _CHECK_DIGITS = 13, 2


def encode(kind: Kind, secret: bytes) -> str:
    """Return a key (32 bytes) as text that ends in a newline."""
    lines = [f"Blockferry {kind} 1"]
    for number, start in enumerate(range(0, LENGTH, _PART), 1):
        part = secret[start : start + _PART]
        digits = _to_digits(int.from_bytes(part, "big"), _PART_DIGITS)
        groups = "-".join(digits[place : place + 4] for place in range(0, _PART_DIGITS, 4))
        lines.append(f"{number}  {groups}  {_check(kind, number, part)}")
    return "\n".join(lines) + "\n"


def decode(text: str) -> tuple[Kind, bytes]:
    """Return the kind and the key that a text has. Raises ValueError with what is wrong, without showing the key."""
    title, *lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()] or [""]
    kind = next((kind for kind in get_args(Kind) if title.lower() == f"blockferry {kind} 1"), None)
    if kind is None:
        raise ValueError('it does not begin with "Blockferry key file 1" or "Blockferry master key 1"')
    if len(lines) != LENGTH // _PART:
        raise ValueError(f"it has {len(lines)} lines of digits, not {LENGTH // _PART}")
    return kind, b"".join(_part(kind, number, line) for number, line in enumerate(lines, 1))


def _part(kind: Kind, number: int, line: str) -> bytes:
    """Return the bytes of one line. Raises ValueError."""
    label, _, rest = line.partition(" ")
    digits = rest.replace(" ", "").replace("-", "").upper()
    if label != str(number) or len(digits) != _PART_DIGITS + _CHECK_DIGITS:
        raise ValueError(f"line {number} is not a number, {_PART_DIGITS} digits and {_CHECK_DIGITS} check digits")
    if not all(digit in _VALUES for digit in digits):
        raise ValueError(f"line {number} has a character that is no digit of a key")
    value = 0
    for digit in digits[:_PART_DIGITS]:
        value = value * len(_DIGITS) + _VALUES[digit]
    check = "".join(_DIGITS[_VALUES[digit]] for digit in digits[_PART_DIGITS:])
    if value >= 2 ** (8 * _PART) or _check(kind, number, value.to_bytes(_PART, "big")) != check:
        raise ValueError(f"line {number} has a wrong digit, or two that changed places")
    return value.to_bytes(_PART, "big")


def _check(kind: Kind, number: int, part: bytes) -> str:
    digest = blake3(f"{kind} {number} ".encode() + part).digest(2)
    return _to_digits(int.from_bytes(digest, "big") % len(_DIGITS) ** _CHECK_DIGITS, _CHECK_DIGITS)


def _to_digits(value: int, count: int) -> str:
    digits = ""
    for _ in range(count):
        value, digit = divmod(value, len(_DIGITS))
        digits = _DIGITS[digit] + digits
    return digits
