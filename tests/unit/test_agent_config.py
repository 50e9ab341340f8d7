"""The agent's configuration: what it may say, and the sentence for what it may not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blockferry_agent import config
from blockferry_agent.units import MiB

TLS = {"certificate": "tls/agent.crt", "key": "tls/agent.key", "ca": "/etc/ca.crt"}


def load(directory: Path, **document: object) -> config.Config:
    path = directory / "agent.json"
    path.write_text(json.dumps(document))
    return config.load(path)


def test_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, listen=["192.0.2.1:54330"], tls=TLS) == config.Config(
        listen=("192.0.2.1:54330",),
        tls=config.Tls(tmp_path / "tls/agent.crt", tmp_path / "tls/agent.key", Path("/etc/ca.crt")),
        control_socket="/run/ovirt-imageio/sock",
        data_socket="@/org/ovirt/imageio",
        nbd_directories=("/run/vdsm/backup", "/run/vdsm/nbd"),
        socket_mode=0o600,
        pid_file=None,
        workers=4,
        max_reads=16,
        keepalive_seconds=20.0,
        socket_ports=range(0),
        socket_addresses=("192.0.2.1",),
        clear_text=False,
        bytes_per_second=0,
    )


def test_everything(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        listen=["[2001:db8::1]:54330", "host.example:1", "unix:/run/agent.sock"],
        tls={**TLS, "revoked": "tls/revoked.json"},
        socket_mode="0660",
        control_socket="/c",
        data_socket="/d",
        nbd_directories=["/n"],
        pid_file="run/agent.pid",
        workers=5,
        max_reads=1,
        keepalive_seconds=0.5,
        socket_ports=[54331, 54340],
        socket_address="192.0.2.9",
        clear_text=True,
        bytes_per_second=400 * MiB,
    )
    assert loaded.pid_file == tmp_path / "run/agent.pid"
    assert loaded.tls is not None
    assert (loaded.tls.revoked, loaded.socket_mode) == (tmp_path / "tls/revoked.json", 0o660)
    assert (loaded.workers, loaded.max_reads, loaded.keepalive_seconds) == (5, 1, 0.5)
    assert loaded.socket_ports == range(54331, 54341)
    assert (loaded.socket_addresses, loaded.clear_text, loaded.bytes_per_second) == (("192.0.2.9",), True, 400 * MiB)


@pytest.mark.parametrize("mode", ["0666", "0606", 0o660, "660"])
def test_a_unix_socket_is_never_for_all_users(tmp_path: Path, mode: object) -> None:
    with pytest.raises(config.ConfigError, match='socket_mode must be "0600" or "0660"'):
        load(tmp_path, listen=["unix:/run/agent.sock"], socket_mode=mode)


def test_sockets_open_where_the_agent_listens(tmp_path: Path) -> None:
    listen = ["[2001:db8::1]:54330", "host.example:1", "unix:/run/agent.sock"]
    loaded = load(tmp_path, listen=listen, tls=TLS, socket_ports=[1, 1])
    assert loaded.socket_addresses == ("2001:db8::1", "host.example")


def test_sockets_beside_a_unix_socket_need_an_address_and_tls(tmp_path: Path) -> None:
    sockets = {"listen": ["unix:/run/agent.sock"], "socket_ports": [1, 2]}
    with pytest.raises(config.ConfigError, match="socket_address must be there, because of socket_ports"):
        load(tmp_path, **sockets, tls=TLS)
    with pytest.raises(config.ConfigError, match="tls must be there, because of socket_ports"):
        load(tmp_path, **sockets, socket_address="192.0.2.9")
    assert load(tmp_path, **sockets, socket_address="192.0.2.9", clear_text=True).tls is None


def test_a_unix_socket_needs_no_tls(tmp_path: Path) -> None:
    assert load(tmp_path, listen=["unix:/run/agent.sock"]).tls is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"listen": None}, "listen must be a list of texts"),
        ({"listen": []}, "listen must be a list of texts that is not empty"),
        ({"listen": [1]}, "listen must be a text"),
        ({"listen": ["localhost"]}, "'localhost' is not"),
        ({"listen": ["a:0"]}, "'a:0' is not"),
        ({"listen": ["a:65536"]}, "'a:65536' is not"),
        ({"listen": ["::1:5"]}, "'::1:5' is not"),
        ({"listen": ["unix:relative"]}, "'unix:relative' is not"),
        ({"tls": {**TLS, "password": "x"}}, "tls.password is not a known key"),
        ({"tls": {"key": "k"}}, "tls.certificate must be there"),
        ({"tls": "x"}, "tls must be a JSON object"),
        ({"nbd_directories": ["run"]}, "nbd_directories must be a list of absolute paths"),
        ({"workers": 0}, "workers must be a whole number from 1 to 5"),
        ({"workers": 6}, "workers must be"),
        ({"workers": True}, "workers must be"),
        ({"workers": "4"}, "workers must be"),
        ({"max_reads": 0}, "max_reads must be"),
        ({"keepalive_seconds": 0}, "keepalive_seconds must be a number of seconds above 0"),
        ({"socket_ports": 54331}, "socket_ports must be a list of the first port and the last"),
        ({"socket_ports": [2, 1]}, "socket_ports must be"),
        ({"socket_ports": [1]}, "socket_ports must be"),
        ({"socket_ports": [0, 1]}, "socket_ports must be a whole number from 1 to 65535"),
        ({"socket_ports": [1, 65536]}, "socket_ports must be"),
        ({"socket_address": ""}, "socket_address must be a text"),
        ({"clear_text": 1}, "clear_text must be true or false"),
        ({"bytes_per_second": -1}, "bytes_per_second must be"),
        ({"pid_file": ""}, "pid_file must be a text that is not empty"),
        ({"prot": 1}, "prot is not a known key"),
    ],
)
def test_what_it_may_not_say(tmp_path: Path, change: dict[str, object], sentence: str) -> None:
    with pytest.raises(config.ConfigError) as caught:
        load(tmp_path, **{"listen": ["a:1"], "tls": TLS, **change})
    assert sentence in caught.value.message
    assert str(tmp_path / "agent.json") in caught.value.message


def test_listen_is_required_and_so_is_tls_for_tcp(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match="listen must be there"):
        load(tmp_path, tls=TLS)
    with pytest.raises(config.ConfigError, match="tls must be there, because a:1 is a TCP port"):
        load(tmp_path, listen=["a:1"])


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"1"])
def test_a_file_that_is_no_json_object(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "agent.json"
    path.write_bytes(content)
    with pytest.raises(config.ConfigError, match=r"agent\.json"):
        config.load(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match="There is no configuration at"):
        config.load(tmp_path / "agent.json")
