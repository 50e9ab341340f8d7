"""What commands print, for people and for machines."""

from __future__ import annotations

import json

import msgspec
import pytest

from blockferry import errors
from blockferry.cli import output
from blockferry.repository import Carrier
from blockferry.repository.verification import Damage, Hurt, Verification
from tests.unit import recovery_points

POINT = recovery_points.point("c1", [recovery_points.disk("1", "[red]data[/red]" + "x" * 200)])


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 * 1024**2, "1.5 GiB"),
        (1024**5, "1.0 PiB"),
        (5000 * 1024**5, "5000.0 PiB"),
    ],
)
def test_sizes(length: int, text: str) -> None:
    assert output.size(length) == text


def test_one_thing_and_several() -> None:
    assert [output.count(number, "object") for number in (0, 1, 2)] == ["0 objects", "1 object", "2 objects"]


def test_tables_are_whole_and_literal(capsys: pytest.CaptureFixture[str]) -> None:
    output.point(POINT, pinned=False)
    printed = capsys.readouterr().out
    assert POINT.disks[0].alias in printed, "neither cut nor folded, and no markup of anybody's"
    assert POINT.id in printed
    assert "complete by itself" in printed


def test_reasons_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    disks = [recovery_points.disk(number, None, "grpc: No agent.") for number in "123"]
    output.disks(recovery_points.point(None, disks))
    assert capsys.readouterr().out.count("grpc: No agent.") == 1


def test_all_that_carried_a_disk_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    disk = msgspec.structs.replace(
        recovery_points.disk("1"),
        carriers=(
            Carrier(transport="netcat", start=0, moved=512, reason=None, remark="clear text"),
            Carrier(transport="imageio", start=1536 * 1024, moved=0, reason="netcat broke at 1.5 MiB.", remark=None),
        ),
    )
    output.disks(recovery_points.point(None, [disk]))
    printed = capsys.readouterr().out
    assert "netcat (clear text), imageio from 1.5 MiB" in printed
    assert "Not by the first transport alone: netcat broke at 1.5 MiB." in printed


def test_points_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    output.as_json([POINT])
    (document,) = json.loads(capsys.readouterr().out)
    assert document["id"] == POINT.id
    assert document["disks"][0]["bytes"] == {"dirty": 1024, "read": 1024, "moved": 512, "stored": 100}


def test_verification_as_json_has_names(capsys: pytest.CaptureFixture[str]) -> None:
    hurt = Hurt("vm-id", "web", "point", None)
    output.as_json(Verification(3, 4096, (Damage("chunks/ab/abcd", "It is missing.", (hurt,)),), ()))
    assert json.loads(capsys.readouterr().out) == {
        "chunks": 3,
        "checked": 4096,
        "damage": [
            {
                "name": "chunks/ab/abcd",
                "reason": "It is missing.",
                "hurts": [{"vm_id": "vm-id", "vm_name": "web", "point_id": "point", "disk_id": None}],
            }
        ],
        "unreadable": [],
        "present": 0,
        "covered": 1.0,
    }


def test_errors_for_people_and_machines(capsys: pytest.CaptureFixture[str]) -> None:
    problem = errors.NotFound("There is no VM x.", "Check the name.")
    output.error(problem, machine=False)
    assert capsys.readouterr() == ("", "blockferry: There is no VM x. Check the name.\n")
    output.error(problem, machine=True)
    printed = capsys.readouterr()
    assert printed.err == "blockferry: There is no VM x. Check the name.\n"
    assert json.loads(printed.out) == {
        "error": {"kind": "NotFound", "message": "There is no VM x.", "hint": "Check the name."}
    }
