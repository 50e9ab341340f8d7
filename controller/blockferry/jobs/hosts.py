"""Which hosts are meant, and how SSH comes to them."""

from __future__ import annotations

from typing import NamedTuple

from blockferry import deploy, engine, errors
from blockferry.deploy import hostkey, sshconfig
from blockferry.jobs.site import Site


class Choice(NamedTuple):
    """Hosts as an operator names them: by name, address or id; all of a cluster; all that are up."""

    names: tuple[str, ...] = ()
    cluster: str | None = None
    everything: bool = False


def choose(site: Site, choice: Choice) -> list[engine.Host]:
    """
    Return the hosts that are meant, each once.

    Of a cluster, or all: those that the engine has as up.  Raises NotFound, Ambiguous, EngineError.
    """
    with site.engine() as connection:
        if choice.names:
            found = [connection.find_host(name) for name in choice.names]
            return list({host.id: host for host in found}.values())
        hosts = connection.hosts(choice.cluster)
    up = [host for host in hosts if host.status == "up"]
    if not up:
        where = f"cluster {choice.cluster}" if choice.cluster else "the engine"
        raise errors.NotFound(f"No host of {where} is up.", "Name the hosts, if you mean some that are not.")
    return up


def with_agents(site: Site, choice: Choice) -> list[engine.Host]:
    """Return those of the hosts that are meant to which agents were deployed; --all means all of these."""
    if choice.names:
        return choose(site, choice)
    known = {record.host_id for record in site.agents().registry.records()}
    with site.engine() as connection:
        hosts = [host for host in connection.hosts(choice.cluster) if host.id in known]
    if not hosts:
        raise errors.NotFound("No agent was deployed to any of these hosts.", "Run `blockferry agent deploy` first.")
    return hosts


def login(site: Site, host: engine.Host, trust_new: bool = False) -> deploy.Login:
    """
    Return the way to a host: what the engine says, then the operator's own ssh_config.

    The key that the host must show is the one that the engine saw when it was added, else that of known_hosts.
    trust_new: without either, believe it.  Raises ConfigError.
    """
    settings = site.config.agent
    place = sshconfig.look_up(host.address, host.ssh_port or 22, settings.ssh_user, settings.ssh_config_file)
    return deploy.Login(
        address=place.address,
        pins=_pins(site, host, place),
        port=place.port,
        user=settings.ssh_user,
        key_file=settings.ssh_key_file,
        key_files=place.key_files,
        password=settings.ssh_password(),
        proxy=place.proxy,
        sudo=settings.ssh_user != "root" and settings.sudo,
        sudo_password=settings.sudo_password(),
        trust_new=trust_new,
    )


def _pins(site: Site, host: engine.Host, place: sshconfig.Place) -> tuple[hostkey.Pin, ...]:
    if host.ssh_public_key:
        return (hostkey.from_public_key(host.ssh_public_key),)
    if host.ssh_fingerprint:
        return (hostkey.from_fingerprint(host.ssh_fingerprint),)
    known = hostkey.from_known_hosts(place.name, place.known_hosts)
    if known:
        return known
    # A key that was trusted once, because that was asked for, is the one to trust.
    records = [record for record in site.agents().registry.records() if record.host_id == host.id and record.host_key]
    return tuple(hostkey.from_public_key(record.host_key) for record in records)
