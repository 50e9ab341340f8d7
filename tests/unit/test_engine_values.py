"""What the engine package decides without an engine."""

from __future__ import annotations

import dataclasses

import pytest

from blockferry import errors
from blockferry.engine import Disk, Vm, inventory, starting, transfers

DISK = Disk(
    id="d1",
    alias="db01_Disk1",
    size=1,
    format="cow",
    content_type="data",
    storage_type="image",
    shareable=False,
    active=True,
    bootable=True,
    interface="virtio",
)
VM = Vm(id="v1", name="db01", status="up", cluster_id="c1")
TICKET = "74ca180f-77e5-44be-9196-e3226104e406"


@pytest.mark.parametrize("name", ["db01", "my vm", "a_b-c.d", "x and y", "name=z", "über", "page 2"])
def test_names_are_quoted_in_searches(name: str) -> None:
    assert inventory.search_text(name) == f'name="{name}"'


@pytest.mark.parametrize("name", ['a"b', "db*", '" or name="*'])
def test_names_that_no_search_can_say_are_not_searched_for(name: str) -> None:
    assert inventory.search_text(name) is None


def test_near_names_do_not_mind_the_case() -> None:
    assert inventory.near_names("DB01", ["web", "db02", "db01"]) == ["db01", "db02"]
    assert inventory.near_names("zzz", ["web", "db01"]) == []


def test_disks_that_cannot_be_backed_up_say_why() -> None:
    assert DISK.obstacle is None
    obstacles = [
        dataclasses.replace(DISK, **change).obstacle
        for change in ({"storage_type": "lun"}, {"content_type": "iso"}, {"shareable": True}, {"active": False})
    ]
    for obstacle, words in zip(obstacles, ["lun", "iso", "shareable", "not active"], strict=True):
        assert obstacle is not None
        assert words in obstacle


def test_the_ticket_is_the_end_of_the_transfer_url() -> None:
    assert transfers.ticket_id(f"https://host1:54322/images/{TICKET}") == TICKET
    with pytest.raises(errors.EngineError, match="for host 'host1:54322' does not end in a ticket") as caught:
        transfers.ticket_id(f"https://host1:54322/images/{TICKET}x")
    assert TICKET not in str(caught.value)


def test_descriptions_are_unique_short_and_printable() -> None:
    first, second = (starting.new_request(VM, [DISK], None, "engine", "night\x00ly " + "x" * 2000) for _ in range(2))
    assert first.description != second.description
    assert first.description.startswith("night ly xxx")
    assert first.correlation_id in first.description
    assert len(first.description) <= 1024
    assert first.description.isprintable()


def test_only_live_asks_for_the_legacy_flow() -> None:
    assert [starting.new_request(VM, [DISK], None, mode, "").legacy for mode in ("engine", "live", "hybrid")] == [
        False,
        True,
        False,
    ]
