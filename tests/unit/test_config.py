from __future__ import annotations

from pathlib import Path

import pytest

from blockferry import config, errors

MINIMAL = """
[engine]
url = "https://engine.example.com/ovirt-engine/api"
username = "admin@internal"
ca_file = "ca.pem"

[repository]
url = "/srv/backups"
"""


def write(directory: Path, text: str) -> Path:
    path = directory / "config.toml"
    path.write_text(text)
    return path


def test_relative_paths_are_taken_from_the_files_own_directory(tmp_path: Path) -> None:
    assert config.load(write(tmp_path, MINIMAL)).engine.ca_file == tmp_path / "ca.pem"


def test_the_environment_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOCKFERRY_CONFIG", str(write(tmp_path, MINIMAL)))
    assert config.load().repository.url == "/srv/backups"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (MINIMAL + "[agnet]\n", "agnet"),
        (MINIMAL + "[agent]\nport = 70000\n", "$.agent.port"),
        (MINIMAL + "[agent]\nport = '54330'\n", "$.agent.port"),
        (MINIMAL + "[backup]\nmode = 'hot'\n", "$.backup.mode"),
        (MINIMAL + "[backup]\ntransports = []\n", "$.backup.transports"),
        (MINIMAL.replace("url = ", "ur1 = "), "ur1"),
        ("engine = 1", "repository"),
        ("[engine\n", "TOML"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, named: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(errors.ConfigError) as caught:
        config.load(path)
    assert named in str(caught.value) or "Expected" in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match=r"no configuration at .*nothing\.toml.*--config"):
        config.load(tmp_path / "nothing.toml")


def test_password_from_a_file_without_its_newline(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("p&w \n")
    text = MINIMAL.replace("[repository]", 'password_file = "password"\n[repository]')
    assert config.load(write(tmp_path, text)).engine.password() == "p&w "


def test_password_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = config.load(write(tmp_path, MINIMAL))
    monkeypatch.setenv("BLOCKFERRY_ENGINE_PASSWORD", "secret")
    assert loaded.engine.password() == "secret"


def test_no_password_says_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BLOCKFERRY_ENGINE_PASSWORD", raising=False)
    with pytest.raises(errors.ConfigError, match=r"engine\.password_file.*BLOCKFERRY_ENGINE_PASSWORD"):
        config.load(write(tmp_path, MINIMAL)).engine.password()
