"""Keys: what opens an encrypted repository, how it is written down, and what a wrong one does."""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockferry import errors
from blockferry.repository import KeyFile, Keyring, MasterKey, Passphrase, Repository, keys, keytext
from tests.unit import repository_images as images

SECRET = Passphrase("correct horse battery staple")


@pytest.fixture(autouse=True)
def cheap_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second for each guess is right for an attacker."""
    monkeypatch.setattr(keys, "_COST", 2**4)


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = str(tmp_path / "r")
    Repository.init(url, secret=SECRET)
    return url


# Text.


@settings(max_examples=25)
@given(st.binary(min_size=32, max_size=32), st.sampled_from(["key file", "master key"]))
def test_a_key_is_read_as_it_was_written(key: bytes, kind: keytext.Kind) -> None:
    assert keytext.decode(keytext.encode(kind, key)) == (kind, key)


def test_a_key_may_be_typed_carelessly() -> None:
    text = keytext.encode("master key", bytes(range(32)))
    careless = "\n\n" + text.lower().replace("-", " ").replace("0", "o").replace("\n", "\r\n") + "\n"
    assert keytext.decode(careless.replace("1  ", "1 ")) == ("master key", bytes(range(32)))


def test_a_slip_of_the_pen_is_found() -> None:
    """One digit that is another, and two neighbours that changed places: 1 of 1024 would go unseen, none of these."""
    text = keytext.encode("master key", bytes(range(100, 132)))
    title, *lines = text.splitlines()
    seen = 0
    for number, line in enumerate(lines):
        for place in range(3, len(line)):
            other = {"7": "8"}.get(line[place], "7")
            swapped = line[: place - 1] + line[place] + line[place - 1] + line[place + 1 :]
            for wrong in (line[:place] + other + line[place + 1 :], swapped):
                if line[place] in " -" or wrong.replace(" ", "").replace("-", "") == line.replace(" ", "").replace(
                    "-", ""
                ):
                    continue
                mistyped = "\n".join([title, *lines[:number], wrong, *lines[number + 1 :]])
                with pytest.raises(ValueError, match=f"line {number + 1} "):
                    keytext.decode(mistyped)
                seen += 1
    assert seen >= 100


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: "", "does not begin with"),
        (lambda text: text.replace("master", "spare"), "does not begin with"),
        (lambda text: text.replace("master key", "key file"), "line 1 has a wrong digit"),
        (lambda text: text.replace("\n3", "\n4"), "line 3 is not a number"),
        (lambda text: text.rsplit("\n", 2)[0], "3 lines of digits"),
        (lambda text: text.replace("\n1  0", "\n1  U"), "no digit of a key"),
        (lambda text: text.replace("\n1  0", "\n1  Z"), "line 1 has a wrong digit"),
    ],
)
def test_what_is_no_key_is_named(change: object, reason: str) -> None:
    assert callable(change)
    with pytest.raises(ValueError, match=reason):
        keytext.decode(change(keytext.encode("master key", bytes(32))))


# Key files.


def test_a_key_file_is_for_its_owner_and_never_replaced(tmp_path: Path) -> None:
    made = KeyFile.new()
    made.save(tmp_path / "key")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert keys.load(tmp_path / "key") == made
    with pytest.raises(errors.ConfigError, match="File exists"):
        KeyFile.new().save(tmp_path / "key")
    assert keys.load(tmp_path / "key") == made


def test_a_file_that_is_no_key_is_named_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\xff\xfe")
    with pytest.raises(errors.ConfigError, match=f"{tmp_path}/key cannot be used: it is not text"):
        keys.load(tmp_path / "key")
    (tmp_path / "key").write_text("hunter2\n")
    with pytest.raises(errors.ConfigError, match="does not begin") as caught:
        keys.load(tmp_path / "key")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(errors.ConfigError, match="No such file"):
        keys.load(tmp_path / "none")


def test_secrets_are_not_shown() -> None:
    for secret in (SECRET, KeyFile(b"horse" * 6), MasterKey(b"horse" * 6)):
        assert "horse" not in repr(secret)


# Opening.


def test_a_repository_opens_with_each_kind_of_key(url: str) -> None:
    image = os.urandom(300_000 // 512 * 512)
    point = images.full(Repository.open(url, SECRET), image)
    keyring = Keyring.open(url, SECRET)
    file = KeyFile.new()
    keyring.add(file)
    kind, master = keytext.decode(keyring.export())
    assert kind == "master key"
    for secret in (SECRET, file, MasterKey(master)):
        repository = Repository.open(url, secret)
        assert images.restore(repository, repository.points()[0]) == image
        assert repository.ovf(point) == "<ovf/>"


@pytest.mark.parametrize("wrong", [Passphrase("correct horse"), KeyFile(bytes(32)), MasterKey(bytes(32))])
def test_a_wrong_key_is_refused_at_once(url: str, wrong: keys.Secret) -> None:
    with pytest.raises(errors.WrongKey, match=r"does not open|not that of"):
        Repository.open(url, wrong)


def test_no_key_is_asked_for(url: str) -> None:
    with pytest.raises(errors.WrongKey, match=r"is encrypted\. Set repository\.passphrase_file"):
        Repository.open(url)


def test_a_plain_repository_in_place_of_an_encrypted_one_is_refused(tmp_path: Path) -> None:
    """Who can write to the storage could put one there, to be given everything in the clear."""
    Repository.init(str(tmp_path / "plain"))
    with pytest.raises(errors.WrongKey, match="not encrypted, but the configuration has a key"):
        Repository.open(str(tmp_path / "plain"), SECRET)


@pytest.mark.parametrize("change", [{"window": 2**18}, {"compression": "none"}, {"id": "x"}])
def test_changed_settings_are_found(url: str, change: dict[str, object]) -> None:
    master = MasterKey(keytext.decode(Keyring.open(url, SECRET).export())[1])
    path = Path(url) / "repository.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(errors.WrongKey, match=r"repository\.json there was changed"):
        Repository.open(url, master)


def test_one_passphrase_may_be_typed_in_two_ways(tmp_path: Path) -> None:
    Repository.init(str(tmp_path), secret=Passphrase("caf\u00e9"))
    Repository.open(str(tmp_path), Passphrase("cafe\u0301"))


# Changing.


def test_a_changed_key_opens_what_was_written_before(url: str) -> None:
    image = os.urandom(1024)
    point = images.full(Repository.open(url, SECRET), image)
    before = {path: path.read_bytes() for path in Path(url, "chunks").rglob("*") if path.is_file()}
    new = Passphrase("another")
    Keyring.open(url, SECRET).change(new)
    assert {path: path.read_bytes() for path in Path(url, "chunks").rglob("*") if path.is_file()} == before
    assert images.restore(Repository.open(url, new), point) == image
    with pytest.raises(errors.WrongKey):
        Repository.open(url, SECRET)


def test_the_last_key_stays(url: str) -> None:
    keyring = Keyring.open(url, SECRET)
    (only,) = keyring.list()
    assert only == keyring.used
    with pytest.raises(errors.Conflict, match="last one"):
        keyring.remove(only.id)
    added = keyring.add(KeyFile.new())
    assert [key.kind for key in keyring.list()] == ["passphrase", "key file"]
    keyring.remove(only.id)
    assert keyring.list() == [added]


@pytest.mark.parametrize("key_id", ["00000000", "../x"])
def test_a_key_that_is_not_there_is_not_found(url: str, key_id: str) -> None:
    with pytest.raises(errors.NotFound, match="has no key"):
        Keyring.open(url, SECRET).remove(key_id)


def test_the_master_key_is_not_changed(url: str) -> None:
    master = MasterKey(keytext.decode(Keyring.open(url, SECRET).export())[1])
    with pytest.raises(errors.Conflict, match="master key"):
        Keyring.open(url, master).change(SECRET)


def test_a_plain_repository_has_no_keys(tmp_path: Path) -> None:
    Repository.init(str(tmp_path))
    with pytest.raises(errors.RepositoryError, match=r"not encrypted.*--encrypt"):
        Keyring.open(str(tmp_path), None)


def test_one_damaged_key_does_not_hinder_the_others(url: str, caplog: pytest.LogCaptureFixture) -> None:
    Keyring.open(url, SECRET).add(Passphrase("another"))
    for path in Path(url, "keys").iterdir():
        path.with_name("00000000.json").write_bytes(path.read_bytes())
        path.with_name("00000001.json").write_bytes(path.read_bytes()[:50])
        break
    with caplog.at_level(logging.WARNING):
        Repository.open(url, SECRET)
        Repository.open(url, Passphrase("another"))
        assert len(Keyring.open(url, SECRET).list()) == 2
    assert "00000001.json is damaged" in caplog.text


def test_the_key_of_another_repository_does_not_open_this_one(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Repository.init(str(tmp_path / name), secret=SECRET)
    for path in (tmp_path / "one/keys").iterdir():
        path.rename(tmp_path / "two/keys" / path.name)
    for path in (tmp_path / "two/keys").iterdir():
        document = json.loads(path.read_text())
        document["repository"] = json.loads((tmp_path / "two/repository.json").read_text())["id"]
        path.write_text(json.dumps(document))
    keyring = Keyring.open(str(tmp_path / "two"), SECRET)
    assert len(keyring.list()) == 2
    assert keyring.used is not None


def test_a_price_that_nobody_can_pay_is_not_paid(url: str) -> None:
    """Whoever can write to the storage could ask for all memory."""
    (path,) = Path(url, "keys").iterdir()
    document = json.loads(path.read_text())
    document["by"]["n"] = 2**40
    path.write_text(json.dumps(document))
    with pytest.raises(errors.WrongKey):
        Repository.open(url, SECRET)
