"""What becomes of a guestfish that does not do what it should: a script in its place does that. Real ones: test_files."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from blockferry import errors
from blockferry.guestfs import appliance
from blockferry.guestfs.appliance import Refused


def put(directory: Path, monkeypatch: pytest.MonkeyPatch, answers: str) -> None:
    """Put a guestfish into $PATH: a shell script. answers: what it does for each command but `run` and `echo`."""
    program = directory / "guestfish"
    program.write_text(f"""#!/bin/sh
echo $$ >{directory}/pid
while read -r command rest; do
    case $command in
        -run) ;;
        echo) echo "$rest" ;;
        *) {answers} ;;
    esac
done
""")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def assert_gone(directory: Path) -> None:
    pid = int((directory / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def nothing() -> None: ...


def test_answers_are_those_of_the_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, monkeypatch, 'printf "%s" "$rest"')
    with appliance.booted(["nbd://x"], nothing) as own:
        assert own.ask("cat", "/a") == b"/a"
        assert own.ask("cat") == b""
        assert own.ask("cat", "x" * 5000) == b"x" * 5000
    assert_gone(tmp_path)


def test_what_is_refused_is_told_and_the_next_question_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, monkeypatch, 'echo "*stdin*:3: libguestfs: error: lstatns: $rest: No such file or directory" >&2')
    with appliance.booted(["nbd://x"], nothing) as own:
        for path in ("/a", "/b"):
            with pytest.raises(Refused, match=f"{path}: No such file"):
                own.ask("lstatns", path)


def test_one_that_ends_is_told_with_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, monkeypatch, 'echo "out of memory" >&2; exit 1')
    with appliance.booted(["nbd://x"], nothing) as own:
        for _ in range(2):
            with pytest.raises(errors.RestoreError, match="guestfish has ended: out of memory"):
                own.ask("ls0", "/")


def test_one_that_never_answers_is_killed_when_nothing_is_to_be_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, monkeypatch, "exec sleep 1000")

    def check() -> None:
        raise errors.Damaged("The file system cannot be read.")

    began = time.monotonic()
    with pytest.raises(errors.Damaged), appliance.booted(["nbd://x"], check) as own:
        own.ask("mount-ro", "/dev/sda", "/")
    assert time.monotonic() - began < 20
    assert_gone(tmp_path)


def test_an_answer_that_never_ends_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, monkeypatch, "exec cat /dev/zero")
    with pytest.raises(errors.RestoreError, match="longer than any"), appliance.booted(["nbd://x"], nothing) as own:
        own.ask("ls0", "/")
    assert_gone(tmp_path)


def test_an_output_that_fails_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of the answer is not taken for that of the next question."""
    put(tmp_path, monkeypatch, 'echo "$rest"')

    def full(data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with appliance.booted(["nbd://x"], nothing) as own:
        with pytest.raises(OSError, match="No space"):
            own.stream(full, "tar-out", "x" * 5000)
        with pytest.raises(errors.RestoreError, match="has ended"):
            own.ask("ls0", "/")
    assert_gone(tmp_path)


def test_without_guestfish_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(errors.RestoreError, match="There is no guestfish") as caught, appliance.booted([], nothing):
        pass
    assert "apt install guestfish" in caught.value.hint
