from __future__ import annotations

from pathlib import Path

import pytest

from blockferry import config, errors
from blockferry_agent.units import GiB, KiB, MiB

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
        (MINIMAL + "[backup]\ntransports = ['tcp']\n", "$.backup.transports[0]"),
        (MINIMAL + "[backup]\ntransport = 'tcp'\n", "$.backup.transport"),
        (MINIMAL + "[backup]\ncompression = 'gzip'\n", "$.backup.compression"),
        (MINIMAL + "[backup]\nbandwidth = '200 MB/s'\n", '"200 MiB/s"'),
        (MINIMAL + "[backup]\nbandwidth = '0 MiB/s'\n", "$.backup.bandwidth"),
        (MINIMAL + "[backup]\nbandwidth = 200\n", "$.backup.bandwidth"),
        (MINIMAL + "[agent]\nbandwidth = 'fast'\n", "$.agent.bandwidth"),
        (MINIMAL + "[agent]\nmax_reads = 0\n", "$.agent.max_reads"),
        (MINIMAL + "[agent]\nnetcat_ports = '54331'\n", "the first port and the last"),
        (MINIMAL + "[agent]\nnetcat_ports = '54340-54331'\n", "$.agent.netcat_ports"),
        (MINIMAL + "[agent]\nnetcat_ports = '1-65536'\n", "$.agent.netcat_ports"),
        (MINIMAL + "[agent]\nnetcat_ports = '54330-54339'\n", "contains agent.port (54330)"),
        (MINIMAL.replace("url = ", "ur1 = "), "ur1"),
        ("engine = 1", "$.engine"),
        ("[engine\n", "TOML"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, named: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(errors.ConfigError) as caught:
        config.load(path)
    assert named in str(caught.value)
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


def test_every_transport_is_on_the_ladder_unless_told_otherwise(tmp_path: Path) -> None:
    assert config.load(write(tmp_path, MINIMAL)).backup.ladder == ("netcat", "grpc", "ssh", "imageio")


def test_a_shorter_ladder(tmp_path: Path) -> None:
    loaded = config.load(write(tmp_path, MINIMAL + "[backup]\ntransports = ['imageio', 'ssh']\n"))
    assert loaded.backup.ladder == ("imageio", "ssh")


def test_one_transport_and_no_other(tmp_path: Path) -> None:
    assert config.load(write(tmp_path, MINIMAL + "[backup]\ntransport = 'ssh'\n")).backup.ladder == ("ssh",)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("", 0),
        ("200 MiB/s", 200 * MiB),
        ("1.5GiB/s", 3 * GiB // 2),
        ("64 KiB/s", 64 * KiB),
        ("0.25 MiB/s", 256 * KiB),
    ],
)
def test_bandwidth(tmp_path: Path, text: str, limit: int) -> None:
    loaded = config.load(write(tmp_path, MINIMAL + f"[backup]\nbandwidth = '{text}'\n[agent]\nbandwidth = '{text}'\n"))
    assert loaded.backup.bandwidth == limit
    assert loaded.agent.bandwidth == limit


@pytest.mark.parametrize(
    ("text", "ports"), [("", range(0)), ("54331-54340", range(54331, 54341)), ("7-7", range(7, 8))]
)
def test_ports(tmp_path: Path, text: str, ports: range) -> None:
    assert config.load(write(tmp_path, MINIMAL + f"[agent]\nnetcat_ports = '{text}'\n")).agent.netcat_ports == ports


def test_no_port_at_all(tmp_path: Path) -> None:
    assert config.load(write(tmp_path, MINIMAL + "[agent]\nport = 0\n")).agent.port == 0
