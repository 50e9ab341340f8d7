"""The text of the agent's unit of systemd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blockferry.deploy.onhost import unit
from blockferry.deploy.onhost.refusal import Refused
from blockferry.deploy.onhost.releases import Release

CONFIG = {"listen": ["0.0.0.0:54330", "unix:/run/blockferry-agent/agent.sock"], "socket_ports": [54331, 54340]}
SETTINGS = {"memory": 1 << 29, "cpu_weight": 50, "io_weight": 40, "firewall": True, "ssh_user": "root"}


def release(home: Path, python: str = "/usr/bin/python3", **settings: Any) -> Release:
    path = home / "releases" / "one"
    path.mkdir(parents=True)
    (path / "release.json").write_text(json.dumps({"bundle": "ab", "python": python}))
    (path / "settings.json").write_text(json.dumps({**SETTINGS, **settings}))
    (path / "agent.json").write_text(json.dumps(CONFIG))
    return Release(path)


def test_ports_are_those_of_the_configuration() -> None:
    assert unit.tcp_ports(CONFIG) == ["54330", "54331-54340"]
    assert unit.tcp_ports({"listen": ["unix:/run/sock"]}) == []


def test_settings_are_limits_of_the_unit(tmp_path: Path) -> None:
    lines = unit.service(release(tmp_path), 252).splitlines()
    assert {"MemoryMax=536870912", "CPUWeight=50", "IOWeight=40", "User=blockferry-agent", "Type=notify"} <= set(lines)


def test_unit_is_kept_to_its_ports_where_systemd_can(tmp_path: Path) -> None:
    one = release(tmp_path)
    assert "SocketBind" not in unit.service(one, 248)
    newer = unit.service(one, 249)
    assert "SocketBindAllow=tcp:54330\nSocketBindAllow=tcp:54331-54340\nSocketBindDeny=any\n" in newer


def test_trial_is_not_started_again_nor_at_boot(tmp_path: Path) -> None:
    text = unit.trial(release(tmp_path), 252, tmp_path / "trial.json")
    assert "Restart=no\n" in text
    assert "[Install]" not in text
    assert str(tmp_path / "trial.json") in text


def test_unit_says_of_which_directory_it_is(tmp_path: Path) -> None:
    text = unit.service(release(tmp_path / "agent"), 252)
    assert unit.is_of(text, tmp_path / "agent")
    assert not unit.is_of(text, tmp_path / "agent2")
    assert not unit.is_of("[Unit]\n", tmp_path / "agent")


def test_what_systemd_would_expand_stays_as_it_is(tmp_path: Path) -> None:
    assert "%%h/$$x" in unit.service(release(tmp_path, python="/opt/%h/$x"), 252)


@pytest.mark.parametrize("python", ["/opt/a\nUser=root", "/opt/a'b", '/opt/a"b', "/opt/a\\b", "/opt/a;b"])
def test_path_that_would_be_more_than_a_word_is_refused(tmp_path: Path, python: str) -> None:
    with pytest.raises(Refused, match="cannot stand in a unit"):
        unit.service(release(tmp_path, python=python), 252)


def test_socket_is_lent_to_the_group_of_the_user_of_ssh(tmp_path: Path) -> None:
    assert "chgrp nogroup /run/blockferry-agent/agent.sock" in unit.service(release(tmp_path, ssh_user="nobody"), 252)
    with pytest.raises(Refused, match="no user blockferry-none"):
        unit.service(release(tmp_path / "2", ssh_user="blockferry-none"), 252)
