"""firewalld's rule for the agent's ports, where firewalld runs; other firewalls are their operator's."""

from __future__ import annotations

from collections.abc import Sequence

from blockferry.deploy.onhost import commands

SERVICE = "blockferry-agent"


def is_running() -> bool:
    """Say whether firewalld filters this host."""
    return commands.call("firewall-cmd", "--state").status == 0


def open_ports(ports: Sequence[str]) -> None:
    """Let these TCP ports through, in the default zone, now and after a restart. ports: "54330", "54331-54340"."""
    if not is_running():
        return
    if sorted(_opened()) == sorted(ports):
        return
    close_ports()
    if not ports:
        return
    commands.run("firewall-cmd", "--quiet", "--permanent", f"--new-service={SERVICE}")
    for port in ports:
        commands.run("firewall-cmd", "--quiet", "--permanent", f"--service={SERVICE}", f"--add-port={port}/tcp")
    commands.run("firewall-cmd", "--quiet", "--permanent", f"--add-service={SERVICE}")
    commands.run("firewall-cmd", "--quiet", "--reload")


def close_ports() -> bool:
    """Take the rule away; False when there was none, or firewalld does not run."""
    if not is_running() or not _has_service():
        return False
    commands.call("firewall-cmd", "--quiet", "--permanent", f"--remove-service={SERVICE}")
    commands.run("firewall-cmd", "--quiet", "--permanent", f"--delete-service={SERVICE}")
    commands.run("firewall-cmd", "--quiet", "--reload")
    return True


def _has_service() -> bool:
    return SERVICE in commands.run("firewall-cmd", "--permanent", "--get-services").split()


def _opened() -> list[str]:
    """Return the ports that the rule lets through."""
    if not _has_service():
        return []
    shown = commands.run("firewall-cmd", "--permanent", f"--service={SERVICE}", "--get-ports")
    return [port.partition("/")[0] for port in shown.split()]
