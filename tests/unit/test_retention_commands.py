"""`prune`, `delete`, `undelete`, `trash`, `pin`, `unpin`, `collect` and `verify --share`, as an operator types them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from blockferry.repository import Manifest, Repository, layout, locks
from blockferry_agent.units import KiB
from tests.unit import repository_images as images
from tests.unit.test_repository_commands import Place


class Site(Place):
    """A configuration and its repository, with three points of the VM "web", oldest first."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.repository = Repository.init(self.url, 256 * KiB)
        self.points: list[Manifest] = []
        for _ in range(3):
            self.points.append(images.full(self.repository, os.urandom(256 * KiB)))

    def listed(self) -> list[str]:
        """Return the ids of the points, oldest first."""
        found = self.document("list")
        assert isinstance(found, list)
        return sorted(point["id"] for point in found)

    def age(self) -> None:
        """Let everything be old."""
        for path in Path(self.url).rglob("*"):
            if path.is_file():
                os.utime(path, (1_000_000, 1_000_000))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.delenv("BLOCKFERRY_REPOSITORY_PASSPHRASE", raising=False)
    return Site(tmp_path)


def test_a_deleted_point_comes_back(site: Site) -> None:
    first = site.points[0].id
    done = site.run("delete", "web", first)
    assert done == (0, f"Recovery point {first} of VM web is deleted, and in the trash for now.\n", "")
    assert first not in site.listed()
    (trashed,) = site.document("trash")  # type: ignore[misc]
    assert (trashed["vm_name"], trashed["point_id"]) == ("web", first)
    assert first in site.run("trash").output
    assert site.run("undelete", "web", first).output == f"Recovery point {first} of VM web is back.\n"
    assert first in site.listed()
    assert site.document("trash") == []


def test_several_are_deleted_or_none(site: Site) -> None:
    first, second, third = (point.id for point in site.points)
    done = site.run("delete", "web", first, "nonsense")
    assert done.status == 5
    assert len(site.listed()) == 3
    site.run("pin", "web", second)
    done = site.run("delete", "web", first, second)
    assert done.status == 6
    assert f"Run `blockferry unpin web {second}` first." in done.errors
    assert len(site.listed()) == 3
    site.run("unpin", "web", second)
    assert site.run("delete", "web", first, second, first).status == 0
    assert site.listed() == [third]


def test_several_are_named_at_once_and_told_in_one_document(site: Site) -> None:
    first, second = (point.id for point in site.points[:2])
    for command, state in (("pin", "pinned"), ("unpin", "unpinned"), ("delete", "deleted"), ("undelete", "undeleted")):
        done = site.document(command, "web", first, second, first)
        assert done == [
            {"vm_id": images.VM.id, "vm_name": "web", "point_id": point_id, "state": state}
            for point_id in (first, second)
        ]
    Path(site.url, layout.manifest(images.VM.id, first)).write_bytes(b"{")
    assert site.document("delete", images.VM.id, first, "--unreadable") == [
        {"vm_id": images.VM.id, "vm_name": None, "point_id": first, "state": "gone"}
    ]
    assert len(site.listed()) == 2


def test_one_sees_what_is_pinned(site: Site) -> None:
    first = site.points[0].id
    site.run("pin", "web", first)
    listed = site.document("list", "web")
    assert isinstance(listed, list)
    assert [point["id"] for point in listed if point["pinned"]] == [first]
    (pinned,) = [line for line in site.run("list").output.splitlines() if "pinned" in line]
    assert first in pinned
    shown = site.document("show", "web", first)
    assert isinstance(shown, dict)
    assert shown["pinned"] is True
    assert "Pinned:          yes" in site.run("show", "web", first).output
    assert "Pinned:          no" in site.run("show", "web").output


def test_a_pinned_point_stays(site: Site) -> None:
    first = site.points[0].id
    assert site.run("pin", "web", first).status == 0
    done = site.run("delete", "web", first)
    assert done.status == 6
    assert f"blockferry unpin web {first}" in done.errors
    assert site.run("prune", "--keep-last", "1").status == 0
    assert site.listed() == sorted([first, site.points[2].id])
    site.run("unpin", "web", first)
    site.run("prune", "--keep-last", "1")
    assert site.listed() == [site.points[2].id]


def test_prune_says_what_it_would_do_and_why(site: Site) -> None:
    done = site.run("prune", "web", "--keep-last", "2", "--dry-run")
    rows = [line.split() for line in done.output.splitlines()[1:4]]
    assert [row[4] for row in rows] == ["keep", "keep", "delete"]
    assert "last 1 of 2" in done.output
    assert "no rule keeps it" in done.output
    assert "1 of 3 recovery points would be deleted." in done.output
    assert len(site.listed()) == 3

    verdicts = site.document("prune", "--keep-last", "2")
    assert isinstance(verdicts, list)
    assert [(verdict["keep"], verdict["reasons"]) for verdict in verdicts] == [
        (True, ["last 1 of 2"]),
        (True, ["last 2 of 2"]),
        (False, []),
    ]
    assert len(site.listed()) == 2


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], 2, "This policy would keep nothing."),
        (["--keep-within", "3q"], 2, "is not a time such as 36h"),
        (["db", "--keep-last", "1"], 5, "no recovery point of VM db"),
    ],
)
def test_a_prune_that_cannot_be_meant_deletes_nothing(
    site: Site, words: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = site.run("prune", *words)
    assert done.status == status
    assert said in done.errors
    assert len(site.listed()) == 3


def test_tags_have_policies_of_their_own(site: Site) -> None:
    with site.repository.new_point(images.VM) as draft:
        images.finish(draft.disk(images.DISK, 0, "full"))
        tagged = draft.commit(
            mode="live", backup_id="", checkpoint_id=None, parent=None, seconds=1, tags=("weekly", "to tape")
        )
    assert "weekly, to tape" in site.run("show", "web").output
    assert "tag weekly, tag to tape" in site.run("list", "web").output
    site.run("prune", "--tag", "weekly", "--keep-last", "1")
    assert len(site.listed()) == 4
    site.run("prune", "--keep-last", "1")
    assert site.listed() == [tagged.id]


def test_collect_says_what_it_freed_and_what_it_could_not(site: Site) -> None:
    site.run("delete", "web", site.points[0].id)
    site.age()
    first = site.run("collect", "-q", "--trash", "0", "--young", "0")
    assert first.status == 0
    assert "Gone for good: 1 deleted recovery point." in first.output
    # The chunk, a page of the index, the index, the OVF.
    assert "in 4 objects." in first.output
    assert len(site.listed()) == 2
    assert site.run("verify", "-q").status == 0

    site.repository._chunks().put(b"garbage")
    site.run("delete", "web", site.points[1].id)
    second = site.run("collect", "-q")
    assert "Freed: 0 B in 0 objects." in second.output
    assert (
        "In the trash for now (--trash, or what runs may read it), with all that is needed: 1 deleted recovery point."
        in second.output
    )
    assert "but young (--young), or a running backup's: 19 B in 1 object." in second.output


def test_a_collection_that_is_hindered_says_so(site: Site) -> None:
    Path(site.url, layout.index(images.VM.id, site.points[0].id, images.DISK)).write_bytes(b"")
    done = site.run("collect", "-q", "--json")
    assert done.status == 6
    assert site.points[0].id in json.loads(done.output)["hindrance"]
    assert "nothing more was removed" in done.errors
    with locks.held(site.repository._store, "collecting", "collect"):
        done = site.run("collect", "-q")
    assert done.status == 6
    assert "being collected already" in done.errors


@pytest.mark.parametrize("trashed", [False, True])
@pytest.mark.parametrize("damaged", ["manifest", "index"])
def test_what_a_hindered_collection_advises_helps(site: Site, damaged: str, trashed: bool) -> None:
    first = site.points[0].id
    if trashed:
        site.run("delete", "web", first)
    index = layout.index(images.VM.id, first, images.DISK)
    name = layout.trashed if trashed else layout.manifest
    Path(site.url, name(images.VM.id, first) if damaged == "manifest" else index).write_bytes(b"")
    hindered = site.run("collect", "-q")
    assert hindered.status == 6
    for words in re.findall("`blockferry ([^`]*)`", hindered.errors):
        expected = 5 if words.startswith("delete") and damaged == "index" and trashed else 0
        assert site.run(*words.split()).status == expected, words
    assert site.run("collect", "-q").status == 0
    assert site.listed() == sorted(point.id for point in site.points[1:])


def test_verify_advises_what_can_help(site: Site) -> None:
    first, second, third = (point.id for point in site.points)
    Path(site.url, layout.index(images.VM.id, first, images.DISK)).unlink()
    done = site.run("verify", "-q", "--quick")
    assert done.status == 9
    assert "1 stored object is damaged or missing. No backup mends an .index or .ovf" in done.errors
    site.run("delete", "web", first)
    Path(site.url, layout.manifest(images.VM.id, second)).write_bytes(b"{")
    done = site.run("verify", "-q", "--quick")
    assert done.errors.endswith("1 stored object is damaged or missing.\n")
    assert f"`blockferry delete {images.VM.id} {second} --unreadable`" in done.output
    site.run("delete", images.VM.id, second, "--unreadable")
    assert site.run("verify", "-q", "--quick").status == 0
    assert site.listed() == [third]


def test_a_point_that_cannot_be_read_is_not_said_to_be_nowhere(site: Site) -> None:
    *others, last = site.points
    for point in others:
        Path(site.url, layout.manifest(images.VM.id, point.id)).write_bytes(b"{")
        done = site.run("show", "web", point.id)
        assert done.status == 9
        assert f"`blockferry delete {images.VM.id} {point.id} --unreadable`" in done.errors
    Path(site.url, layout.manifest(images.VM.id, last.id)).write_bytes(b"{")
    done = site.run("show", images.VM.id)
    assert done.status == 9
    assert f"No recovery point of VM {images.VM.id} can be read." in done.errors


def test_a_mistake_is_told_to_machines_too(site: Site) -> None:
    done = site.run("prune", "web", "--json")
    assert done.status == 2
    error = json.loads(done.output)["error"]
    assert error["kind"] == "UsageError"
    assert error["message"].startswith("This policy would keep nothing.")


def test_a_point_that_cannot_be_read_can_be_given_up(site: Site) -> None:
    first = site.points[0]
    Path(site.url, layout.manifest(images.VM.id, first.id)).write_bytes(b"{")
    assert site.run("collect", "-q").status == 6
    assert site.run("delete", "web", first.id).status == 9
    assert site.run("delete", images.VM.id, site.points[1].id, "--unreadable").status == 5
    assert "is gone for good" in site.run("delete", images.VM.id, first.id, "--unreadable").output
    site.age()
    assert site.run("collect", "-q").status == 0
    assert len(site.listed()) == 2


def test_verify_quick_and_by_shares(site: Site) -> None:
    assert "Seen to be there, and not read: 3 chunks." in site.run("verify", "-q", "--quick").output
    done = site.run("verify", "-q", "--share", "40%")
    assert done.status == 0
    assert "% of what is stored was read since all of it was read last." in done.output or "3 chunks" in done.output
    for words in (["--quick", "--live"], ["web", "--share", "5"], ["--share", "0"], ["--share", "x%"]):
        assert site.run("verify", *words).status == 2
    largest = _largest_chunk(site)
    largest.unlink()
    done = site.run("verify", "-q", "--quick")
    assert done.status == 9
    assert largest.name in done.output
    assert "1 stored object is damaged or missing. Back the VMs up:" in done.errors
    assert "No backup mends" not in done.errors


def _largest_chunk(site: Site) -> Path:
    return max(Path(site.url, "chunks").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
