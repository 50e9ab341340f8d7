"""URLs of tickets, and where they may lead."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockferry_agent import errors, url
from blockferry_agent.nbd import Address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nbd:unix:/run/vdsm/backup/b0:exportname=sda", Address("/run/vdsm/backup/b0", "sda")),
        ("nbd:unix:/run/vdsm/nbd/t0.sock", Address("/run/vdsm/nbd/t0.sock", "")),
        ("nbd:unix:/run/vdsm/nbd/t0.sock:exportname=", Address("/run/vdsm/nbd/t0.sock", "")),
        ("nbd:unix:/run/vdsm/nbd/t:exportname=a:b=c/ ü", Address("/run/vdsm/nbd/t", "a:b=c/ ü")),
        ("nbd:unix:/run/vdsm/nbd//./x/../t", Address("/run/vdsm/nbd/t", "")),
    ],
)
def test_urls_that_vdsm_writes(text: str, expected: Address) -> None:
    assert url.parse(text, ["/run/vdsm/backup", "/run/vdsm/nbd"]) == expected


@pytest.mark.parametrize(
    "text",
    [
        "file:///rhev/data-center/disk",
        "nbd:localhost:10809:exportname=sda",
        "nbd+unix:///sda?socket=/run/vdsm/nbd/t",
        "nbd:unix:run/vdsm/nbd/t",
        "nbd:unix:",
        "nbd:unix:/run/vdsm/nbd/t:export=sda",
        "nbd:unix:/run/vdsm/nbd/t\0",
        "nbd:unix:/run/vdsm/nbd",
        "nbd:unix:/run/vdsm/nbd/",
        "nbd:unix:/run/vdsm/nbd/../t",
        "nbd:unix:/run/vdsm/nbd/../../../etc/passwd",
        "nbd:unix:/run/vdsm/nbdx/t",
        "nbd:unix:/t",
        "",
    ],
)
def test_urls_that_are_refused(text: str) -> None:
    with pytest.raises(errors.TicketRefused):
        url.parse(text, ["/run/vdsm/backup", "/run/vdsm/nbd"])


def test_symbolic_links_lead_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "directory").symlink_to(tmp_path / "real")
    (tmp_path / "real/evil").symlink_to("/run/other.sock")
    directories = [str(tmp_path / "directory")]
    assert url.parse(f"nbd:unix:{tmp_path}/directory/t", directories).path == f"{tmp_path}/real/t"
    assert url.parse(f"nbd:unix:{tmp_path}/real/t", directories).path == f"{tmp_path}/real/t"
    with pytest.raises(errors.TicketRefused, match="nbd_directories"):
        url.parse(f"nbd:unix:{tmp_path}/directory/evil", directories)
