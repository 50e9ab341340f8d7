"""The extent map: overlaying, cutting, encoding."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockferry.repository import index
from blockferry.repository.chunks import Chunks
from blockferry.repository.index import PAGE, Entry, PageReference, Range, Root
from blockferry_agent.blocks import MAX_WINDOW
from blockferry_agent.units import GiB, KiB, MiB
from tests.unit.repository_stores import MemoryStore

SPACE = 64
"""Bytes of the disks that are made up here."""


def chunk(letter: str) -> bytes:
    return letter.encode() * 32


def entries_of(drawing: str) -> list[Entry]:
    """Return the entries that a drawing of single bytes means: "AAbb  A" has A at 0, b at 2, and A again at 6."""
    found: list[Entry] = []
    for position, letter in enumerate(drawing):
        if letter == " ":
            continue
        if found and found[-1].end == position and found[-1].chunk == chunk(letter):
            found[-1] = found[-1]._replace(length=found[-1].length + 1)
        else:
            found.append(Entry(position, 1, chunk(letter), drawing[:position].count(letter)))
    return found


def drawing_of(entries: list[Entry], size: int) -> str:
    letters = [" "] * size
    for entry in entries:
        for position in range(entry.start, entry.end):
            assert letters[position] == " ", "entries overlap"
            letters[position] = chr(entry.chunk[0])
    return "".join(letters)


@pytest.mark.parametrize(
    ("base", "laid_over", "result"),
    [
        ("AAAABBBB", "--x-----", "AAxABBBB"),
        ("AAAABBBB", "--xxxx--", "AAxxxxBB"),
        ("AAAABBBB", "--..----", "AA  BBBB"),
        ("AAAABBBB", "xxxx....", "xxxx    "),
        ("    BBBB", "-xx-----", " xx BBBB"),
        ("AAAAAAAA", "-x-y-z-.", "AxAyAzA "),
        ("AABBCCDD", "-.....x-", "A     xD"),
        ("        ", "--------", "        "),
    ],
)
def test_overlay_as_drawn(base: str, laid_over: str, result: str) -> None:
    assert drawing_of(lay(entries_of(base), laid_over), 8) == result


def lay(base: list[Entry], laid_over: str) -> list[Entry]:
    """Overlay a drawing: "-" is as it was, "." zero, letters are fresh."""
    replaced = [Range(position, 1) for position, letter in enumerate(laid_over) if letter != "-"]
    fresh = [Entry(position, 1, chunk(letter)) for position, letter in enumerate(laid_over) if letter not in "-."]
    return index.overlay(base, replaced, fresh)


@st.composite
def ranges(draw: st.DrawFn) -> list[Range]:
    """Ranges in disk order without overlaps; some touch."""
    cuts = sorted(draw(st.sets(st.integers(0, SPACE), max_size=20)))
    return [Range(start, end - start) for start, end in itertools.pairwise(cuts) if draw(st.booleans())]


@given(st.lists(ranges(), min_size=1, max_size=6), st.data())
def test_overlays_read_as_the_bytes_that_were_written(layers: list[list[Range]], choices: st.DataObject) -> None:
    """Model: a disk as an array of (chunk, offset), None where it is zero."""
    model: list[tuple[bytes, int] | None] = [None] * SPACE
    entries: list[Entry] = []
    for generation, layer in enumerate(layers):
        fresh = []
        for number, (start, length) in enumerate(layer):
            name = bytes([generation, number]) * 16
            is_zero = choices.draw(st.booleans())
            for offset in range(length):
                model[start + offset] = None if is_zero else (name, offset)
            if not is_zero:
                fresh.append(Entry(start, length, name, 0, b"x" * 16))
        entries = index.overlay(entries, layer, fresh)

    read: list[tuple[bytes, int] | None] = [None] * SPACE
    end = 0
    for entry in entries:
        assert entry.length > 0
        assert entry.start >= end
        end = entry.end
        for offset in range(entry.length):
            read[entry.start + offset] = (entry.chunk, entry.offset + offset)
        if entry.digest:
            assert Range(entry.start, entry.length) in layers[entry.chunk[0]], (
                "a cut entry kept the digest of the whole"
            )
    assert read == model


def test_what_is_not_touched_stays_the_same_entry() -> None:
    base = [Entry(0, 4, chunk("A"), 0, b"a" * 16), Entry(4, 4, chunk("B"), 0, b"b" * 16)]
    assert index.overlay(base, [Range(4, 1)], []) == [base[0], Entry(5, 3, chunk("B"), 1)]


def test_windows_in_more_than_eight_pieces_are_broken() -> None:
    eight = [Entry(position * 2 * KiB, 1 * KiB, chunk("A")) for position in range(8)]
    nine = [Entry(1 * MiB + position * 2 * KiB, 1 * KiB, chunk("A")) for position in range(9)]
    assert index.broken_windows(eight + nine, 1 * MiB) == [1 * MiB]


@st.composite
def pages(draw: st.DrawFn) -> tuple[int, list[Entry]]:
    number = draw(st.integers(0, 2**20))
    cuts = sorted(draw(st.sets(st.integers(0, PAGE), max_size=12)))
    entries = []
    for start, end in zip(cuts[::2], cuts[1::2], strict=False):
        name = draw(st.binary(min_size=32, max_size=32))
        offset = draw(st.integers(0, 8 * MiB))
        digest = draw(st.binary(min_size=16, max_size=16).filter(any))
        entries.append(Entry(number * PAGE + start, end - start, name, offset, digest if offset == 0 else b""))
    return number, entries


@given(pages())
def test_pages_survive_encoding(page: tuple[int, list[Entry]]) -> None:
    number, entries = page
    assert index.decode_page(number, index.encode_page(number, entries)) == entries


@given(
    st.dictionaries(
        st.integers(0, 2**15 - 1), st.builds(PageReference, st.integers(0, 1024), st.binary(min_size=32, max_size=32))
    )
)
def test_roots_survive_encoding(pages_: dict[int, PageReference]) -> None:
    root = Root(8 * 1024 * GiB, 1 * MiB, pages_)
    assert index.decode_root(index.encode_root(root)) == root


@given(pages(), st.data())
def test_no_cut_or_mangled_page_is_taken_for_another(page: tuple[int, list[Entry]], choices: st.DataObject) -> None:
    number, entries = page
    encoded = index.encode_page(number, entries)
    with pytest.raises(ValueError, match="it"):
        index.decode_page(number, encoded[: choices.draw(st.integers(0, len(encoded) - 1))])
    with pytest.raises(ValueError, match="it"):
        index.decode_page(number, encoded + b"\0")


def test_entries_out_of_place_are_refused() -> None:
    overlapping = [Entry(0, 10, chunk("A")), Entry(5, 10, chunk("B"))]
    empty = [Entry(0, 0, chunk("A"))]
    beyond = [Entry(PAGE - 1, 2, chunk("A"))]
    for entries in (overlapping, empty, beyond):
        with pytest.raises(ValueError, match="out of place"):
            index.decode_page(0, index.encode_page(0, entries))


def test_a_root_of_pages_behind_the_disk_is_refused() -> None:
    with pytest.raises(ValueError, match="more than its disk"):
        index.decode_root(index.encode_root(Root(PAGE, 1 * MiB, {1: PageReference(0, chunk("A"))})))


@pytest.mark.parametrize("window", [0, 1, 16 * MiB])
def test_a_root_with_a_window_that_none_can_have_is_refused(window: int) -> None:
    with pytest.raises(ValueError, match="its window is"):
        index.decode_root(index.encode_root(Root(PAGE, window, {})))


class CountedChunks(Chunks):
    """Chunks in memory. reads: how often any was read."""

    reads = 0

    def get(self, digest: bytes, limit: int = MAX_WINDOW) -> bytes:
        self.reads += 1
        return super().get(digest, limit)


def test_pages_that_were_read_stay_in_memory_as_far_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_ENTRIES_KEPT", 12)
    chunks = CountedChunks(MemoryStore(), "none")
    pages = {}
    for number in range(6):
        entries = [Entry(number * PAGE + place * MiB, MiB, bytes(32)) for place in range(4)]
        pages[number] = PageReference(0, chunks.put(index.encode_page(number, entries)).digest)
    kept = index.Index(Root(6 * PAGE, MiB, pages), chunks)
    for number in (0, 1, 2, 0, 2, 1):
        assert [entry.start for entry in kept.page(number)] == [number * PAGE + place * MiB for place in range(4)]
    assert chunks.reads == 3
    kept.page(3)
    # The one that was not used for longest had to go.
    for number in (2, 1, 3):
        kept.page(number)
    assert chunks.reads == 4
    kept.page(0)
    assert chunks.reads == 5
