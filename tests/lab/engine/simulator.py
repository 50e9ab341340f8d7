"""
The engine of the lab: its REST API over HTTPS, with a real host behind it.
"""

from __future__ import annotations

import dataclasses
import ssl
import time
from collections.abc import Sequence
from pathlib import Path

from tests.lab import certificates, domains
from tests.lab.engine import model
from tests.lab.engine.backups.lifecycle import Backups
from tests.lab.engine.checkpoints import Checkpoints
from tests.lab.engine.cleanup import Cleanup
from tests.lab.engine.context import Context
from tests.lab.engine.database import Database, new_id
from tests.lab.engine.disks import Disks
from tests.lab.engine.events import Events
from tests.lab.engine.faults import Faults
from tests.lab.engine.imports import Imports
from tests.lab.engine.routes import application
from tests.lab.engine.server import Server
from tests.lab.engine.services import Services
from tests.lab.engine.settings import Settings
from tests.lab.engine.sso import Sessions
from tests.lab.engine.transfers.requests import Transfers
from tests.lab.engine.vms import Vms
from tests.lab.engine.workers import Workers
from tests.lab.host import Host


class EngineSimulator:
    """
    One data center with one cluster and one storage domain to begin with, on the hosts of the lab; the first is the SPM.

    username, password: of the one user.  events, faults, settings, cleanup: for tests.
    """

    def __init__(
        self,
        directory: Path,
        ca: certificates.Authority,
        hosts: Sequence[Host],
        username: str,
        password: str,
        cluster_level: str = "4.7",
    ) -> None:
        self.username = username
        self.password = password
        self.settings = Settings()
        self._db = Database()
        self._workers = Workers(self._db)
        self._sessions = Sessions(username, password)
        self.events = Events(self._db, username)
        self.faults = Faults(self._db, self._sessions.expire, self._restart)
        context = Context(self._db, self.events, self.faults, self.settings, self._workers)
        self.cleanup = Cleanup(context)
        self._vms = Vms(context)
        disks = Disks(context, self._vms)
        checkpoints = Checkpoints(context, self._vms)
        self._backups = Backups(context, self._vms, checkpoints)
        services = Services(
            context=context,
            sessions=self._sessions,
            vms=self._vms,
            imports=Imports(context, self._vms),
            disks=disks,
            checkpoints=checkpoints,
            backups=self._backups,
            transfers=Transfers(context, disks),
            ca=ca.pem,
        )
        certificate = ca.issue("engine", "localhost", "127.0.0.1")
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate.certificate, certificate.key)
        self._server = Server(application.create(services), tls)
        self._set_up(hosts, directory, cluster_level)

    @property
    def url(self) -> str:
        return f"https://localhost:{self._server.port}/ovirt-engine/api"

    def start(self) -> None:
        self._server.start()
        self._workers.start("Cleaning up the database", self.cleanup.run_forever)

    def stop(self) -> None:
        """Stop serving and end the commands under way; what they have started on hosts stays."""
        self._server.stop()
        self._workers.stop()

    def add_vm(self, spec: domains.VmSpec, host: Host) -> model.Vm:
        """Make a VM that the host knows the engine's."""
        return self._vms.add(spec, host, self._cluster.id, self._storage_domain.id)

    def add_storage_domain(self, name: str) -> str:
        """Make one more domain, on the same disk as the first; return its id."""
        domain = model.StorageDomain(new_id(), name, self._storage_domain.path)
        with self._db.changed:
            self._db.storage_domains[domain.id] = domain
        return domain.id

    def add_cluster(self, name: str) -> str:
        """Make one more cluster, without a host; return its id."""
        cluster = dataclasses.replace(self._cluster, id=new_id(), name=name)
        with self._db.changed:
            self._db.clusters[cluster.id] = cluster
        return cluster.id

    def move_host(self, host: Host, cluster: str) -> None:
        """Put a host into another cluster, made when there is none of that name."""
        with self._db.changed:
            found = [one for one in self._db.clusters.values() if one.name == cluster]
            self._db.hosts[host.id].cluster_id = found[0].id if found else self.add_cluster(cluster)

    def set_host_status(self, host: Host, status: str) -> None:
        """status: "up", "maintenance", "non_responsive"…; nothing happens to the host itself."""
        with self._db.changed:
            self._db.hosts[host.id].status = status
            self._db.changed.notify_all()

    def disk_of(self, transfer_id: str) -> str:
        """The id of the disk that a transfer reads or writes."""
        return self._db.transfers[transfer_id].disk_id

    def _set_up(self, hosts: Sequence[Host], directory: Path, cluster_level: str) -> None:
        major, minor = map(int, cluster_level.split("."))
        data_center = model.DataCenter(new_id(), "Default")
        self._cluster = model.Cluster(new_id(), "Default", (major, minor), data_center.id)
        self._storage_domain = model.StorageDomain(new_id(), "data1", hosts[0].volumes)
        self._db.data_centers[data_center.id] = data_center
        self._db.clusters[self._cluster.id] = self._cluster
        self._db.storage_domains[self._storage_domain.id] = self._storage_domain
        for host in hosts:
            spm = host is hosts[0]
            self._db.hosts[host.id] = model.HostRow(host, self._cluster.id, spm)

    def _restart(self, seconds: float) -> None:
        """Commands of the real engine are persistent and go on after a restart; here they never stop."""
        self._server.stop()
        self._sessions.expire()
        time.sleep(seconds)
        self._backups.fail_unmonitored()
        self._server.start()
