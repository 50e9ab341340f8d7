"""What is said to guestfish, and how its answers are read."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockferry.guestfs import commands

NAMES = st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name)


def words_of(line: bytes) -> list[bytes]:
    """Return the words of a line as guestfish takes it apart (its manual page, "QUOTING ARGUMENTS")."""
    words = []
    for plain, quoted in re.findall(rb'([^\s"]+)|"((?:[^"\\]|\\x[0-9a-f]{2})*)"', line.rstrip(b"\n")):
        words.append(plain or re.sub(rb"\\x(..)", lambda found: bytes.fromhex(found[1].decode()), quoted))
    return words


@given(st.lists(NAMES, max_size=4))
def test_words_come_through_whatever_they_hold(names: list[bytes]) -> None:
    line = commands.command("lstatns", *names)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1, "one command"
    assert words_of(line) == [b"-lstatns", *names]


def test_nul_is_in_no_name() -> None:
    with pytest.raises(ValueError, match="NUL"):
        commands.command("lstatns", b"/a\0b")


def test_a_line_that_guestfish_would_cut_is_not_said() -> None:
    assert len(commands.command("ls0", b"/" + b"a" * 8180)) < 8191
    with pytest.raises(ValueError, match="too long"):
        commands.command("ls0", b"/" + b"a" * 8190)
    with pytest.raises(ValueError, match="too long"):
        commands.command("ls0", b"/" + b"\xff" * 4000)


@given(st.lists(NAMES | st.integers(0, 10**200).map(lambda number: b"%d" % number), max_size=200), NAMES)
def test_names_are_asked_for_in_groups_that_fit_a_line(names: list[bytes], directory: bytes) -> None:
    groups = list(commands.groups(directory, names))
    assert sorted(name for group in groups for name in group) == sorted(names)
    assert all(len(group) == 1 or all(map(commands.is_listable, group)) for group in groups)
    for group in groups:
        commands.command("lstatnslist", directory, b" ".join(group))


def test_a_directory_of_many_names_takes_few_questions() -> None:
    names = [b"file%d" % number for number in range(64_000)]
    assert len(list(commands.groups(b"/var/spool", names))) < 100


ANSWER = b"".join(
    b"[%d] = {\n  st_mode: %d\n  st_uid: 1000\n  st_gid: 100\n  st_size: 7\n  st_mtime_sec: -1\n  st_mtime_nsec: 5\n"
    b"  st_spare6: 0\n}\n" % (number, mode)
    for number, mode in enumerate([0o100640, 0o40755])
)


def test_a_status_is_read() -> None:
    first, second = commands.statuses(ANSWER)
    assert first == commands.Status(0o100640, 1000, 100, 7, -999_999_995)
    assert second.mode == 0o40755


@given(st.integers(0, len(ANSWER)), st.binary(max_size=3))
def test_an_answer_that_is_none_is_no_status(at: int, garbage: bytes) -> None:
    try:
        found = list(commands.statuses(ANSWER[:at] + garbage + ANSWER[at:]))
    except ValueError:
        return
    assert len(found) <= 2
