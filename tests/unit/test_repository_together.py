"""
Many at once: backups, deletes, collections and crashes in any order and in the midst of each other.

Every point that is visible, or in the trash, reads as its disk was; what nobody needs goes.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from blockferry import errors
from blockferry.repository import (
    DiskWriter,
    Draft,
    Manifest,
    Policy,
    Repository,
    Times,
    Vm,
    collection,
    layout,
    locks,
    retention,
)
from blockferry.repository import settings as settings_module
from blockferry.repository.chunks import Chunks
from blockferry.repository.needs import Needs
from blockferry.repository.store import Store
from blockferry_agent.units import KiB
from tests.unit import repository_images as images
from tests.unit.repository_stores import MemoryStore

WINDOW = 256 * KiB
VMS = (images.VM, Vm("8ad5b6a9-9a1e-4d35-9d3f-0a37be5a01a2", "db"))
CONTENT = {letter: letter.encode() * WINDOW for letter in "ABCDE"} | {".": bytes(WINDOW)}
WINDOWS = 3


@pytest.fixture(autouse=True, scope="module")
def quick_locks() -> Iterator[None]:
    """Let writers look for collections all the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locks, "RENEWAL", 0.02)
        patch.setattr(locks, "POLL", 0.002)
        patch.setattr(collection, "_PIECE", 1)
        yield


class Wire:
    """The way of one controller to a store. Nothing comes through when it is cut: that controller is dead."""

    def __init__(self, store: MemoryStore) -> None:
        self.url = store.url
        self.side_by_side = store.side_by_side
        self.vouches = store.vouches
        self.is_cut = False
        self._store = store

    def __getattr__(self, name: str) -> Callable[..., object]:
        if self.is_cut:
            raise errors.RepositoryError("The controller is dead.")
        method: Callable[..., object] = getattr(self._store, name)
        return method


class Backup:
    """A backup of a VM that goes on as long as its owner likes."""

    def __init__(self, store: MemoryStore, vm: Vm, base: Manifest | None, base_content: str) -> None:
        self.content = base_content
        self.position = 0
        self.wire = Wire(store)
        self.repository = on(self.wire)
        self.stack = contextlib.ExitStack()
        self.draft: Draft = self.stack.enter_context(self.repository.new_point(vm))
        self.base = base
        self.writer: DiskWriter = self.draft.disk(
            images.DISK, WINDOWS * WINDOW, "full" if base is None else "incremental", base
        )

    def write(self, letter: str) -> None:
        """Write the next window."""
        if self.position < WINDOWS:
            start, content = self.position * WINDOW, CONTENT[letter]
            block = images.data(start, content) if any(content) else images.zero(start, WINDOW)
            self.content = self.content[: self.position] + letter + self.content[self.position + 1 :]
            self.position += 1
            self.writer.write(block)

    def commit(self) -> Manifest:
        """Write the rest as zeros when this is a full backup, and commit."""
        while self.base is None and self.position < WINDOWS:
            self.write(".")
        images.finish(self.writer)
        point = self.draft.commit(
            mode="live", backup_id=str(uuid.uuid4()), checkpoint_id=None, parent=self.base, seconds=1
        )
        self.stack.close()
        return point

    def crash(self, store: MemoryStore, elsewhere: bool) -> None:
        """Die, on this host or on another one, of whose processes nothing is known."""
        self.wire.is_cut = True
        with contextlib.suppress(errors.Error):
            self.stack.close()
        name = layout.lock(self.draft._repository_lock.id)
        holder = b'"host": "elsewhere"' if elsewhere else b'"started": "0"'
        store.put(name, re.sub(b'"host": "[^"]*"' if elsewhere else b'"started": "[^"]*"', holder, store.objects[name]))


def on(store: Store | Wire) -> Repository:
    return Repository.on(cast(Store, store))


def new_store() -> MemoryStore:
    store = MemoryStore()
    settings_module.write(store, WINDOW, "zstd")
    return store


def read(repository: Repository, point: Manifest) -> str:
    """Return the letters of a point's disk."""
    letters = {content: letter for letter, content in CONTENT.items()}
    image = images.restore(repository, point)
    return "".join(letters[image[start : start + WINDOW]] for start in range(0, len(image), WINDOW))


ACTIONS = st.tuples(
    st.sampled_from(
        ["begin", "begin", "write", "write", "write", "write", "commit", "delete", "undelete", "give_up", "crash"]
    ),
    st.integers(0, 5),
    st.sampled_from("ABCDE."),
)


class Together(RuleBasedStateMachine):
    """Everything at once. `visible` and `trash` are what should be there: points, and the letters of their disks."""

    @initialize()
    def begin_repository(self) -> None:
        self.store = new_store()
        self.repository = on(self.store)
        self.backups: list[Backup] = []
        self.visible: dict[str, tuple[Manifest, str]] = {}
        self.trash: dict[str, tuple[Manifest, str]] = {}
        self.died_elsewhere = False
        self.litter()

    @rule()
    def litter(self) -> None:
        """Backups that were given up left everything, long before what comes now."""
        for content in CONTENT.values():
            self.repository._chunks().put(content)
        self.time_passes(700)

    @rule(action=ACTIONS)
    def do(self, action: tuple[str, int, str]) -> None:
        name, number, letter = action
        getattr(self, f"_{name}")(number, letter)

    @rule(seconds=st.sampled_from([1, 700, 100_000]))
    def time_passes(self, seconds: int) -> None:
        self.store.now += seconds
        for backup in self.backups:
            backup.draft._repository_lock.renew()

    @rule(
        trash=st.sampled_from([timedelta(), timedelta(days=1)]),
        young=st.sampled_from([timedelta(), timedelta(minutes=5)]),
        before=st.lists(st.sampled_from("ABCDE."), max_size=3),
        actions=st.lists(ACTIONS, min_size=2, max_size=8),
        when=st.sampled_from(["reading", "looking", "waiting", "removed"]),
    )
    def collect(
        self, trash: timedelta, young: timedelta, before: list[str], actions: list[tuple[str, int, str]], when: str
    ) -> None:
        """
        Collect, and do other things meanwhile, each in a thread: some must wait for the end of the collection.

        before: written by a backup that is under way then.  when: the step of the collection at which the actions come.
        """
        if before:
            self.litter()
            self._begin(len(before), before[0])
            for letter in before:
                self._write(len(self.backups) - 1, letter)
        left = iter(actions)
        threads: list[threading.Thread] = []
        failures: list[BaseException] = []

        def meanwhile(action: tuple[str, int, str]) -> None:
            try:
                self.do(action)
            except BaseException as error:
                failures.append(error)

        def progress(said: str) -> None:
            if said.startswith(when):
                for action in itertools.islice(left, 2):
                    threads.append(threading.Thread(target=meanwhile, args=[action]))
                    threads[-1].start()
                    threads[-1].join(0.1)

        live = bool(self.backups) or self.died_elsewhere
        collected = self.repository.collect(Times(trash, young, 2), progress)
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert not failures
        assert collected.hindrance is None or live or self.died_elsewhere
        kept = {each.point.id for each in self.repository.trash(unreadable=pytest.fail)}
        assert kept <= set(self.trash)
        self.trash = {point_id: each for point_id, each in self.trash.items() if point_id in kept}

    @rule(number=st.integers(0, 1), last=st.integers(1, 2))
    def prune(self, number: int, last: int) -> None:
        points = self.repository.points(VMS[number].id)
        for decision in retention.decide(points, Policy(last=last), set()):
            if not decision.keep:
                self.trash[decision.point.id] = self.visible.pop(decision.point.id)
                self.repository.delete(decision.point)

    @rule(share=st.sampled_from([0, 0.4, 1]))
    def verify(self, share: float) -> None:
        assert self.repository.verify(self.repository.points(), lambda step: None, share).damage == ()

    @invariant()
    def what_should_be_there_is(self) -> None:
        if hasattr(self, "repository"):
            assert {point.id for point in self.repository.points()} == set(self.visible)
            for point, content in self.visible.values():
                assert read(self.repository, point) == content

    def teardown(self) -> None:
        if not hasattr(self, "repository"):
            return
        while self.backups:
            self._give_up(0, "")
        while self.trash:
            self._undelete(0, "")
        self.what_should_be_there_is()
        self.store.now += 100_000
        collected = self.repository.collect(Times(timedelta(), timedelta(), 2), lambda said: None)
        assert collected.hindrance is None
        self.what_should_be_there_is()
        needs = Needs(self.store, Chunks(self.store, "zstd"))
        needs.add(self.repository.points())
        for name in self.store.objects:
            digest = layout.digest_of(name)
            assert digest in needs if digest else name == layout.SETTINGS or needs.needs_beside(name), name

    def _begin(self, number: int, letter: str) -> None:
        vm = VMS[number % len(VMS)]
        own = [each for each in self.visible.values() if each[0].vm == vm]
        if len(self.backups) == 4:
            return
        if own and letter in "ABC":
            with contextlib.suppress(errors.NotFound):
                self.backups.append(Backup(self.store, vm, *own[-1]))
        else:
            self.backups.append(Backup(self.store, vm, None, "." * WINDOWS))

    def _write(self, number: int, letter: str) -> None:
        if self.backups:
            self.backups[number % len(self.backups)].write(letter)

    def _commit(self, number: int, letter: str) -> None:
        if self.backups:
            backup = self.backups.pop(number % len(self.backups))
            point = backup.commit()
            self.visible[point.id] = point, backup.content

    def _give_up(self, number: int, letter: str) -> None:
        if self.backups:
            self.backups.pop(number % len(self.backups)).stack.close()

    def _crash(self, number: int, letter: str) -> None:
        if self.backups:
            elsewhere = letter == "A"
            self.died_elsewhere |= elsewhere
            self.backups.pop(number % len(self.backups)).crash(self.store, elsewhere)

    def _delete(self, number: int, letter: str) -> None:
        if self.visible:
            point_id = list(self.visible)[number % len(self.visible)]
            self.trash[point_id] = self.visible.pop(point_id)
            self.repository.delete(self.trash[point_id][0])

    def _undelete(self, number: int, letter: str) -> None:
        if self.trash:
            point_id = list(self.trash)[number % len(self.trash)]
            point, content = self.trash[point_id]
            # A collection may be removing something, or have emptied the trash already.
            with contextlib.suppress(errors.Conflict, errors.NotFound):
                self.repository.undelete(point.vm.id, point_id)
                del self.trash[point_id]
                self.visible[point_id] = point, content


TestTogether = Together.TestCase
TestTogether.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
