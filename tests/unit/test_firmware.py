"""What a VM boots by, and where QEMU's firmware is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blockferry import errors
from blockferry.jobs import firmware


@pytest.mark.parametrize(
    ("ovf", "boots_by", "chipset"),
    [
        ("", "bios", "q35"),
        ("<Content><Name>old</Name></Content>", "bios", "q35"),
        ("<BiosType>0</BiosType>", "bios", "q35"),
        ("<BiosType>1</BiosType>", "bios", "pc"),
        ("<BiosType>2</BiosType>", "bios", "q35"),
        ("<BiosType>3</BiosType>", "uefi", "q35"),
        ("<BiosType>4</BiosType>", "uefi", "q35"),
    ],
)
def test_the_configuration_says_what_a_vm_boots_by(ovf: str, boots_by: str, chipset: str) -> None:
    assert (firmware.of(ovf), firmware.chipset(ovf)) == (boots_by, chipset)


@pytest.fixture
def descriptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(firmware, "DESCRIPTIONS", tmp_path)
    return tmp_path


def describe(directory: Path, name: str, **changes: Any) -> Path:
    """Write a description of firmware, which is there; return its code's path."""
    code = directory / f"{name}.fd"
    code.touch()
    image = {"filename": str(code), "format": "raw"}
    description = {
        "interface-types": ["uefi"],
        "mapping": {"device": "flash", "executable": image, "nvram-template": image},
        "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
        "features": ["acpi-s3"],
    }
    (directory / f"{name}.json").write_text(json.dumps(description | changes))
    return code


def test_the_first_description_that_fits_is_taken(descriptions: Path) -> None:
    describe(descriptions, "10-secure", features=["requires-smm", "secure-boot"])
    describe(descriptions, "20-arm", targets=[{"architecture": "aarch64", "machines": ["virt-*"]}])
    describe(descriptions, "30-memory", mapping={"device": "memory", "filename": "x"})
    describe(descriptions, "40-bios", **{"interface-types": ["bios"]})
    describe(descriptions, "50-gone").unlink()
    (descriptions / "60-broken.json").write_text("{")
    wanted = describe(descriptions, "70-fits")
    describe(descriptions, "80-fits-too")
    assert firmware.uefi().code.filename == str(wanted)


def test_without_firmware_it_is_told_what_to_install(descriptions: Path) -> None:
    with pytest.raises(errors.RestoreError, match=r"boots by UEFI.*not on this machine"):
        firmware.uefi()
