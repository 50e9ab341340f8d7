"""
The firmware and chipset that a VM boots by, and where QEMU's firmware is on this machine.

Distributions describe theirs in JSON files, which QEMU specifies (docs/interop/firmware.json): the first by name that
fits is the one to take.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from blockferry import errors

Firmware = Literal["bios", "uefi"]
Chipset = Literal["pc", "q35"]
"""As QEMU calls them; `pc` is i440FX."""

DESCRIPTIONS = Path("/usr/share/qemu/firmware")

_BIOS_TYPE = re.compile(r"<BiosType>\s*(\d+)\s*</BiosType>")
_I440FX_SEA_BIOS, _Q35_OVMF = 1, 3
"""Two of the engine's BiosType: between them is q35 with BIOS, above them q35 with UEFI and Secure Boot."""


class Image(msgspec.Struct, frozen=True):
    """A file of the firmware. format: as QEMU calls it."""

    filename: str
    format: str


class _Mapping(msgspec.Struct, frozen=True, rename="kebab"):
    device: str
    executable: Image | None = None
    nvram_template: Image | None = None


class _Target(msgspec.Struct, frozen=True):
    architecture: str
    machines: tuple[str, ...] = ()


class _Description(msgspec.Struct, frozen=True, rename="kebab"):
    interface_types: tuple[str, ...]
    mapping: _Mapping
    targets: tuple[_Target, ...] = ()
    features: tuple[str, ...] = ()


class Uefi(NamedTuple):
    """
    UEFI for a machine of type q35, without Secure Boot.

    code: is only read.  variables: to be copied for each machine.
    """

    code: Image
    variables: Image


def of(ovf: str) -> Firmware:
    """Return what a VM boots by, from its configuration. Without a word it is BIOS."""
    return "uefi" if _bios_type(ovf) >= _Q35_OVMF else "bios"


def chipset(ovf: str) -> Chipset:
    """Return a VM's chipset, from its configuration: a guest may have no driver for the controllers of another one."""
    return "pc" if _bios_type(ovf) == _I440FX_SEA_BIOS else "q35"


def _bios_type(ovf: str) -> int:
    """Return the engine's BiosType, 0 when the configuration does not say."""
    found = _BIOS_TYPE.search(ovf)
    return int(found[1]) if found else 0


def uefi() -> Uefi:
    """Find QEMU's UEFI on this machine. Raises RestoreError when there is none."""
    for path in sorted(DESCRIPTIONS.glob("*.json")):
        try:
            described = msgspec.json.decode(path.read_bytes(), type=_Description)
        except (OSError, msgspec.DecodeError):
            continue  # one that we do not understand is not one that we need
        code, variables = described.mapping.executable, described.mapping.nvram_template
        if code is not None and variables is not None and _fits(described) and Path(code.filename).exists():
            return Uefi(code, variables)
    raise errors.RestoreError(
        "This VM boots by UEFI, and QEMU's UEFI is not on this machine.",
        "Install it (ovmf, or edk2-ovmf); if the guest can also boot by BIOS, give --firmware bios.",
    )


def _fits(described: _Description) -> bool:
    return (
        "uefi" in described.interface_types
        and described.mapping.device == "flash"
        # Secure Boot needs System Management Mode, and would refuse guests whose keys their old machine has.
        and "requires-smm" not in described.features
        and any(
            target.architecture == "x86_64" and any("q35" in machine for machine in target.machines)
            for target in described.targets
        )
    )
