"""The way to a host, as the real ssh reads it out of an operator's configuration."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from blockferry import errors
from blockferry.deploy import hostkey, sshconfig
from tests.component.sshd import Sshd


def look_up(directory: Path, text: str, address: str = "host1", port: int = 22) -> sshconfig.Place:
    config = directory / "config"
    config.write_text(text)
    return sshconfig.look_up(address, port, "backup", config)


def test_nothing_set(tmp_path: Path) -> None:
    place = look_up(tmp_path, "")
    assert (place.address, place.port, place.name, place.proxy) == ("host1", 22, "host1", ())


def test_names_ports_and_keys(tmp_path: Path) -> None:
    key = tmp_path / "key with space"
    key.write_text("")
    known = tmp_path / "known"
    known.write_text("")
    place = look_up(
        tmp_path,
        f'Host host1\n HostName 192.0.2.7\n Port 2222\n IdentityFile "{key}"\n IdentityFile {tmp_path}/none\n'
        f" UserKnownHostsFile {known} {tmp_path}/none\n GlobalKnownHostsFile none\n",
    )
    assert (place.address, place.port, place.name) == ("192.0.2.7", 2222, "[192.0.2.7]:2222")
    assert place.key_files == (key,)
    assert place.known_hosts == (known,)


def test_what_the_engine_knows_of_the_port_comes_first(tmp_path: Path) -> None:
    assert look_up(tmp_path, "Host *\n Port 2222\n", port=2022).port == 2022


@pytest.mark.parametrize(
    ("jump", "words"),
    [
        ("jump.example.com", ["-W", "[host1]:22", "--", "jump.example.com"]),
        ("ops@first:2022,second", ["-J", "ops@first:2022", "-W", "[host1]:22", "--", "second"]),
        ("ops@first:2022", ["-W", "[host1]:22", "--", "ssh://ops@first:2022"]),
    ],
)
def test_jump_hosts(tmp_path: Path, jump: str, words: list[str]) -> None:
    proxy = look_up(tmp_path, f"Host host1\n ProxyJump {jump}\n").proxy
    assert list(proxy) == ["ssh", "-F", str(tmp_path / "config"), "-o", "BatchMode=yes", *words]


def test_a_command_that_leads_there(tmp_path: Path) -> None:
    proxy = look_up(tmp_path, "Host *\n ProxyCommand nc %h %p # %r 100%%\n").proxy
    assert proxy == ("sh", "-c", "exec nc host1 22 # backup 100%")


def test_configuration_that_ssh_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match=r"ssh cannot use its configuration.*ssh_config"):
        look_up(tmp_path, "Nonsense yes\n")


def test_known_hosts_also_with_hashed_names(tmp_path: Path) -> None:
    with Sshd(tmp_path / "sshd", key_types=("ed25519",)) as server:
        known = tmp_path / "known_hosts"
        scanned = subprocess.run(
            ["ssh-keyscan", "-H", "-p", str(server.port), "127.0.0.1"], check=True, capture_output=True, text=True
        )
        known.write_text(scanned.stdout)
        pins = hostkey.from_known_hosts(f"[127.0.0.1]:{server.port}", [tmp_path / "none", known])
        assert set(server.login().pins) <= set(pins) or {pin.fingerprint for pin in server.login().pins} <= {
            pin.fingerprint for pin in pins
        }
        assert hostkey.from_known_hosts("127.0.0.1", [known]) == ()
