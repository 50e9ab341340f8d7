"""The benchmarks' rounds and tables, without anything that takes time."""

from __future__ import annotations

import json
import time
from itertools import count
from pathlib import Path

import pytest

from blockferry.repository import store as stores
from blockferry_agent.units import GiB, KiB, MiB
from tests.bench import changing, contenders, far, many, paper, race, repository, scale, stage
from tests.bench.race import Contender, Result, Unavailable


def result(name: str, *seconds: float, bar: float = 0, against: str = "") -> Result:
    return Result(Contender(name, lambda: 0.0, bar, against), seconds)


def test_a_round_has_everybody_and_the_first_does_not_count() -> None:
    numbers = count(1)
    found = race.run([Contender("a", lambda: float(next(numbers))), Contender("b", lambda: 7.0)], 3, lambda text: None)
    assert found[0].seconds == (2.0, 3.0, 4.0)
    assert found[1].seconds == (7.0, 7.0, 7.0)


def test_who_cannot_run_is_named_and_asked_once() -> None:
    asked = []

    def refuse() -> float:
        asked.append(1)
        raise Unavailable("it is not installed")

    (found,) = race.run([Contender("peer", refuse)], 3, lambda text: None)
    assert (found.seconds, found.reason, len(asked)) == ((), "it is not installed", 1)
    assert "peer | could not run: it is not installed" in paper.table([found], GiB)


def test_ratios_are_of_each_round() -> None:
    # The second round was ten times as slow for both: a ratio of medians would not see that.
    assert race.ratio(result("a", 1, 10, 1), result("b", 2, 20, 2)) == 2.0


def test_a_bar_is_held_against_the_best_of_a_kind() -> None:
    text = paper.table(
        [
            result("peer, 1 worker", 4, 4),
            result("peer, 2 workers", 2, 2),
            result("ours", 1, 1, bar=2.5, against="peer"),
        ],
        2 * GiB,
    )
    assert "| ours | 2.00 | 2.00 to 2.00 | peer, 2 workers | 2.00 | 2.5: missed by 20 % |" in text
    assert text.index("ours") < text.index("peer, 2 workers |")


def test_a_bar_without_its_peer_is_open() -> None:
    assert "| peer | could not run |  |" in paper.table([result("ours", 1, bar=2, against="peer")], GiB)


def test_all_that_reads_a_disk_reads_all_of_it() -> None:
    with stage.up("sparse", 2 * MiB) as scene:
        results = race.run(contenders.all_of(scene), 1, lambda text: None)
        assert stage.resident_peak(scene.agent_pid) > MiB
    assert {f"ours: {name}" for name in contenders.OURS} < {found.contender.name for found in results if found.seconds}


def test_scale_checks_run_small() -> None:
    dirty = 512 * KiB
    with scale.changed(size=4 * GiB, dirty=dirty) as scene:
        results = race.run(contenders.incremental(scene, dirty), 1, lambda text: None)
    assert all(found.seconds for found in results), [found.reason for found in results]
    assert scale.fragmented(size=64 * MiB).count == 16


def test_an_image_changes_by_a_twentieth_where_it_says(tmp_path: Path) -> None:
    image = changing.ChangingImage(tmp_path / "image", 64 * MiB)
    before = image.path.read_bytes()
    image.change(1)
    after = image.path.read_bytes()
    changes = image.changes(image.size, 1)
    assert 0.05 <= sum(length for _, length in changes) / image.size < 0.07
    position = 0
    for start, length in changes:
        assert before[position:start] == after[position:start]
        assert before[start : start + length] != after[start : start + length]
        position = start + length
    assert before[position:] == after[position:]


def test_a_repository_is_made_and_read_by_commands() -> None:
    with repository.directory_trial(2 * MiB, lambda place: [repository.Ours(place, encrypted=True)]) as trial:
        for operation in (trial.backup, trial.second_backup, trial.restore, trial.verify):
            (found,) = operation(0, lambda text: None)
            assert found.reason == ""
        costs = trial.costs()
    assert "| ours, encrypted, zstd | second backup |" in costs


def test_a_far_bucket_is_late_and_never_out_of_date(monkeypatch: pytest.MonkeyPatch) -> None:
    with far.serving(delay=0.05) as service:
        for name, value in service.environment.items():
            monkeypatch.setenv(name, value)
        store = stores.connect(f"s3://{service.new_bucket()}/here")
        for content in (b"one", b"another"):
            store.put("a/b", content)
            began = time.monotonic()
            assert [store.get("a/b", 10) for _ in range(2)] == [content] * 2
            assert time.monotonic() - began >= 0.1
        asked = len(service.requests)
        store.get("a/b", 10)
        assert len(service.requests) == asked


def test_many_chunks_run_small() -> None:
    assert "`collect`: 100 of 200 removed" in many.table(200)


def test_the_report_has_every_round(tmp_path: Path) -> None:
    report = paper.Report("# Title", tmp_path / "report.md")
    report.race("A race", [result("ours", 1, 2)], GiB, "A remark.")
    report.memory("the agent", 151 * MiB)
    text = (tmp_path / "report.md").read_text()
    assert "## A race\n\nA remark.\n\n| |" in text
    assert "| the agent | 151 | 150: missed |" in text
    assert json.loads((tmp_path / "report.json").read_text()) == {"A race": {"ours": [1, 2]}}
