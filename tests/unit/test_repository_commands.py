"""`blockferry repository`, as an operator types it."""

from __future__ import annotations

import contextlib
import io
import json
import stat
import sys
from pathlib import Path

import pytest

from blockferry.cli import program
from blockferry.repository import Passphrase, Repository, keys
from tests.unit import repository_images as images
from tests.unit.test_commands import Done


class Place:
    """A configuration whose repository is yet to be made."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.url = str(directory / "r")
        (directory / "passphrase").write_text("correct horse\n")
        self.configure("")

    def configure(self, keys: str) -> None:
        """Write the configuration. keys: lines of [repository]."""
        (self.directory / "config.toml").write_text(f"""
state = "{self.directory}/state"
[engine]
url = "https://localhost:1/ovirt-engine/api"
username = "admin@internal"
ca_file = "ca.pem"
[repository]
url = "r"
{keys}
""")

    def run(self, *words: str) -> Done:
        output, errors = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["blockferry", *words])
            patch.setenv("BLOCKFERRY_CONFIG", str(self.directory / "config.toml"))
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
                status = program._run()
        return Done(status, output.getvalue(), errors.getvalue())

    def document(self, *words: str) -> object:
        done = self.run(*words, "--json", "--quiet")
        assert (done.status, done.errors) == (0, "")
        return json.loads(done.output)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.delenv("BLOCKFERRY_REPOSITORY_PASSPHRASE", raising=False)
    monkeypatch.setattr(keys, "_COST", 2**4)
    return Place(tmp_path)


def test_without_encryption_nothing_is_asked(place: Place) -> None:
    assert place.run("repository", "init").output == f"The repository {place.url} is ready.\n"
    assert place.run("list").status == 0


def test_the_configurations_passphrase_encrypts_and_opens(place: Place) -> None:
    place.configure('passphrase_file = "passphrase"')
    done = place.run("repository", "init", "--encrypt")
    assert (done.status, done.output) == (0, f"The repository {place.url} is ready and encrypted.\n")
    assert "repository key export" in done.errors
    images.full(Repository.open(place.url, Passphrase("correct horse")), bytes(1024))
    assert "web" in place.run("list").output


def test_a_wrong_or_missing_key_ends_at_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.configure('passphrase_file = "passphrase"')
    place.run("repository", "init", "--encrypt")
    place.configure("")
    done = place.run("list")
    assert (done.status, done.output) == (8, "")
    assert "BLOCKFERRY_REPOSITORY_PASSPHRASE" in done.errors
    monkeypatch.setenv("BLOCKFERRY_REPOSITORY_PASSPHRASE", "wrong")
    done = place.run("list")
    assert done.status == 8
    assert "The passphrase does not open the repository" in done.errors
    monkeypatch.setenv("BLOCKFERRY_REPOSITORY_PASSPHRASE", "correct horse")
    assert place.run("list").status == 0


def test_a_key_file_is_made_for_a_new_repository(place: Place) -> None:
    place.configure('key_file = "key"')
    assert place.run("repository", "init", "--encrypt").status == 0
    assert stat.S_IMODE((place.directory / "key").stat().st_mode) == 0o600
    assert place.run("list").status == 0


def test_encrypting_needs_a_key(place: Place) -> None:
    done = place.run("repository", "init", "--encrypt")
    assert done.status == 3
    assert "--passphrase-file or --key-file" in done.errors
    assert place.run("repository", "init", "--key-file", "x").status == 2
    assert place.run("repository", "init", "--encrypt", "--key-file", "x", "--passphrase-file", "y").status == 2
    assert not (place.directory / "r/repository.json").exists()


def test_the_configuration_names_one_key(place: Place) -> None:
    place.configure('key_file = "key"\npassphrase_file = "passphrase"')
    done = place.run("list")
    assert done.status == 3
    assert "both repository.passphrase_file and repository.key_file" in done.errors


def test_keys_are_added_listed_changed_and_removed(place: Place) -> None:
    place.configure('passphrase_file = "passphrase"')
    place.run("repository", "init", "--encrypt")
    (first,) = place.document("repository", "key", "list")  # type: ignore[misc]
    assert (first["kind"], first["used"]) == ("passphrase", True)
    key_file = str(place.directory / "key")
    added = place.document("repository", "key", "add", "--key-file", key_file)
    assert isinstance(added, dict)
    listed = place.run("repository", "key", "list").output
    assert first["id"] in listed and added["key"] in listed and "in use" in listed

    (place.directory / "new").write_text("another\n")
    assert (
        "the old one removed"
        in place.run("repository", "key", "change", "--passphrase-file", str(place.directory / "new")).output
    )
    assert place.run("list").status == 8
    place.configure('key_file = "key"')
    assert place.run("list").status == 0
    done = place.run("repository", "key", "remove", first["id"])
    assert (done.status, "has no key" in done.errors) == (5, True)
    assert place.run("repository", "key", "add").status == 2


def test_an_exported_key_opens_the_repository(place: Place) -> None:
    place.configure('key_file = "key"')
    place.run("repository", "init", "--encrypt")
    printed = place.run("repository", "key", "export").output
    assert printed.startswith("Blockferry master key 1\n1  ")
    (place.directory / "key").write_text(printed.lower())
    assert place.run("list").status == 0
    title, first, *others = printed.splitlines()
    mistyped = first[:3] + ("7" if first[3] != "7" else "8") + first[4:]
    (place.directory / "key").write_text("\n".join([title, mistyped, *others]))
    done = place.run("list")
    # One mistake of 1024 passes the check digits; then it is the wrong key.
    assert done.status in (3, 8)
    assert "line 1 has a wrong digit" in done.errors or "not that of the repository" in done.errors


def test_durability_is_a_choice_of_two(place: Place) -> None:
    place.configure('durability = "none"')
    assert place.run("repository", "init").status == 0
    place.configure('durability = "some"')
    assert place.run("list").status == 3


def test_points_are_copied_to_another_repository(place: Place) -> None:
    place.configure('passphrase_file = "passphrase"')
    place.run("repository", "init", "--encrypt")
    image = bytes(range(256)) * 4096
    source = Repository.open(place.url, Passphrase("correct horse"))
    older = images.full(source, image[: 512 * 1024])
    images.full(source, image)
    to = ["--to", str(place.directory / "there"), "--to-key-file", str(place.directory / "key")]

    assert place.run("repository", "copy", *to[:2]).status == 8, "there is no such repository"
    made = keys.KeyFile.new()
    made.save(place.directory / "key")
    Repository.init(str(place.directory / "there"), secret=made)
    done = place.run("repository", "copy", *to[:2])
    assert (done.status, "--to-passphrase-file or --to-key-file" in done.errors) == (8, True)

    (first,) = place.document("repository", "copy", "web", older.id, *to)  # type: ignore[misc]
    assert (first["point_id"], first["new"], first["moved"]) == (older.id, True, 512 * 1024)
    done = place.run("repository", "copy", *to)
    assert done.status == 0
    assert f"Copied to {place.directory}/there: 1 recovery point; there already: 1." in done.output
    there = Repository.open(str(place.directory / "there"), made)
    assert images.restore(there, there.points()[0]) == image

    done = place.run(
        "repository", "copy", "--to", place.url, "--to-passphrase-file", str(place.directory / "passphrase")
    )
    assert (done.status, "are one repository" in done.errors) == (6, True)
