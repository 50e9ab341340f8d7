"""
Sessions, the API's root, hosts, clusters, data centers, storage domains, templates, events, jobs.
"""

from __future__ import annotations

import shutil

import flask

from tests.lab.engine import model, rejections, xml
from tests.lab.engine.routes import query
from tests.lab.engine.routes.table import Table
from tests.lab.engine.services import Services

_COLLECTIONS = (
    *("clusters", "datacenters", "disks", "events", "hosts", "imagetransfers", "jobs"),
    *("storagedomains", "templates", "vms"),
)


def routes(services: Services) -> Table:
    table = Table()
    db = services.db

    @table.post("/ovirt-engine/sso/oauth/token")
    def token() -> object:
        return services.sessions.grant(flask.request.form)

    @table.post("/ovirt-engine/services/sso-logout")
    def logout() -> object:
        return services.sessions.revoke(flask.request.form)

    @table.get("/ovirt-engine/services/pki-resource")
    def pki_resource() -> object:
        if flask.request.args.get("resource") != "ca-certificate":
            raise rejections.NotFound
        return flask.Response(services.ca.read_bytes(), content_type="application/x-x509-ca-cert")

    @table.get(xml.BASE)
    def api() -> xml.Element:
        with db.changed:
            return render_api(services)

    @table.get(f"{xml.BASE}/hosts")
    def hosts() -> xml.Element:
        with db.changed:
            found = query.selected(
                list(db.hosts.values()),
                {
                    "id": lambda row: row.host.id,
                    "name": lambda row: row.host.name,
                    "address": lambda row: row.host.address,
                    "hw_id": lambda row: row.host.id,
                    "status": lambda row: row.status,
                    "cluster": lambda row: db.clusters[row.cluster_id].name,
                    "datacenter": lambda _: [center.name for center in db.data_centers.values()],
                },
            )
            return xml.collection("hosts", [render_host(row) for row in found])

    @table.get(f"{xml.BASE}/hosts/<uuid:host_id>")
    def host(host_id: str) -> xml.Element:
        with db.changed:
            if host_id not in db.hosts:
                raise rejections.NotFound
            return render_host(db.hosts[host_id])

    @table.get(f"{xml.BASE}/clusters")
    def clusters() -> xml.Element:
        found = query.selected(
            list(db.clusters.values()),
            {"id": lambda cluster: cluster.id, "name": lambda cluster: cluster.name},
        )
        return xml.collection("clusters", [render_cluster(cluster) for cluster in found])

    @table.get(f"{xml.BASE}/clusters/<uuid:cluster_id>")
    def cluster(cluster_id: str) -> xml.Element:
        if cluster_id not in db.clusters:
            raise rejections.NotFound
        return render_cluster(db.clusters[cluster_id])

    @table.get(f"{xml.BASE}/datacenters")
    def data_centers() -> xml.Element:
        found = query.selected(
            list(db.data_centers.values()),
            {
                "id": lambda center: center.id,
                "name": lambda center: center.name,
                "storage.name": lambda _: [domain.name for domain in db.storage_domains.values()],
            },
        )
        return xml.collection("data_centers", [render_data_center(center) for center in found])

    @table.get(f"{xml.BASE}/datacenters/<uuid:center_id>")
    def data_center(center_id: str) -> xml.Element:
        if center_id not in db.data_centers:
            raise rejections.NotFound
        return render_data_center(db.data_centers[center_id])

    @table.get(f"{xml.BASE}/storagedomains")
    def storage_domains() -> xml.Element:
        found = query.selected(
            list(db.storage_domains.values()),
            {"id": lambda domain: domain.id, "name": lambda domain: domain.name},
        )
        return xml.collection("storage_domains", [render_storage_domain(domain) for domain in found])

    @table.get(f"{xml.BASE}/storagedomains/<uuid:domain_id>")
    def storage_domain(domain_id: str) -> xml.Element:
        if domain_id not in db.storage_domains:
            raise rejections.NotFound
        return render_storage_domain(db.storage_domains[domain_id])

    @table.get(f"{xml.BASE}/templates")
    def templates() -> xml.Element:
        blank = xml.entity("template", f"templates/{_BLANK}", _BLANK, {"name": "Blank"})
        return xml.collection("templates", [blank])

    @table.get(f"{xml.BASE}/events")
    def events() -> xml.Element:
        """Newest first; `from` is an exclusive lower bound of the index."""
        after = flask.request.args.get("from", default=0, type=int)
        with db.changed:
            found = query.selected(
                [event for event in reversed(db.events) if event.index > after],
                {
                    "correlation_id": lambda event: event.correlation_id,
                    "type": lambda event: event.code,
                    "severity": lambda event: event.severity,
                    "event_vm": lambda event: event.vm_name,
                    "event_host": lambda event: event.host_name,
                    "message": lambda event: event.description,
                    "time": lambda event: event.time,
                },
            )
        return xml.collection("events", [render_event(event) for event in found])

    @table.get(f"{xml.BASE}/jobs")
    def jobs() -> xml.Element:
        with db.changed:
            found = query.selected(
                list(db.jobs.values()),
                {
                    "correlation_id": lambda job: job.correlation_id,
                    "description": lambda job: job.description,
                    "status": lambda job: job.status,
                },
            )
            return xml.collection("jobs", [render_job(job) for job in found])

    @table.get(f"{xml.BASE}/jobs/<uuid:job_id>")
    def job(job_id: str) -> xml.Element:
        with db.changed:
            if job_id not in db.jobs:
                raise rejections.NotFound
            return render_job(db.jobs[job_id])

    return table


_BLANK = "00000000-0000-0000-0000-000000000000"


def render_api(services: Services) -> xml.Element:
    db = services.db
    up = sum(vm.status == "up" for vm in db.vms.values())
    return xml.plain(
        "api",
        {
            "product_info": {
                "instance_id": next(iter(db.data_centers)),
                "name": "oVirt Engine",
                "vendor": "ovirt.org",
                "version": {
                    "build": 7,
                    "full_version": "4.5.7-1.el9",
                    "major": 4,
                    "minor": 5,
                    "revision": 0,
                },
            },
            "summary": {
                "hosts": {"active": sum(row.status == "up" for row in db.hosts.values()), "total": len(db.hosts)},
                "storage_domains": {
                    "active": len(db.storage_domains),
                    "total": len(db.storage_domains),
                },
                "users": {"active": 1, "total": 1},
                "vms": {"active": up, "total": len(db.vms)},
            },
            "time": model.now(),
        },
        *(xml.link(name, name) for name in _COLLECTIONS),
    )


def render_host(row: model.HostRow) -> xml.Element:
    host = row.host
    return xml.entity(
        "host",
        f"hosts/{host.id}",
        host.id,
        {
            "name": host.name,
            "address": host.address,
            "cluster": xml.Reference(f"clusters/{row.cluster_id}"),
            "hardware_information": {"uuid": host.id},
            "libvirt_version": {
                "build": 0,
                "full_version": "libvirt-9.0.0-10.el9",
                "major": 9,
                "minor": 0,
                "revision": 0,
            },
            "os": {"type": "RHEL", "version": {"full_version": "9 - 1.el9", "major": 9}},
            "port": 54321,
            "protocol": "stomp",
            "se_linux": {"mode": "disabled"},
            "spm": {"priority": 5, "status": "spm" if row.spm else "none"},
            "ssh": {
                "fingerprint": host.ssh_fingerprint,
                "port": host.ssh_port,
                "public_key": host.ssh_public_key,
            },
            "status": row.status,
            "type": "rhel",
            "version": {
                "build": 6,
                "full_version": "vdsm-4.50.6.1-1.el9",
                "major": 4,
                "minor": 50,
                "revision": 1,
            },
        },
    )


def render_cluster(cluster: model.Cluster) -> xml.Element:
    major, minor = cluster.level
    return xml.entity(
        "cluster",
        f"clusters/{cluster.id}",
        cluster.id,
        {
            "name": cluster.name,
            "cpu": {"architecture": "x86_64", "type": "Intel Nehalem Family"},
            "version": {"major": major, "minor": minor},
            "data_center": xml.Reference(f"datacenters/{cluster.data_center_id}"),
        },
    )


def render_data_center(center: model.DataCenter) -> xml.Element:
    return xml.entity(
        "data_center",
        f"datacenters/{center.id}",
        center.id,
        {"name": center.name, "local": False, "status": "up", "version": {"major": 4, "minor": 7}},
    )


def render_storage_domain(domain: model.StorageDomain) -> xml.Element:
    space = shutil.disk_usage(domain.path)
    return xml.entity(
        "storage_domain",
        f"storagedomains/{domain.id}",
        domain.id,
        {
            "name": domain.name,
            "available": space.free,
            "backup": False,
            "block_size": 512,
            "committed": 0,
            "discard_after_delete": False,
            "external_status": "ok",
            "master": True,
            "status": "active",
            "storage": {"address": "127.0.0.1", "path": str(domain.path), "type": "nfs"},
            "storage_format": "v5",
            "supports_discard": True,
            "type": "data",
            "used": space.used,
            "wipe_after_delete": False,
        },
    )


def render_event(event: model.Event) -> xml.Element:
    return xml.entity(
        "event",
        f"events/{event.index}",
        str(event.index),
        {
            "code": event.code,
            "correlation_id": event.correlation_id,
            "custom_id": -1,
            "description": event.description,
            "flood_rate": 30,
            "index": event.index,
            "origin": "oVirt",
            "severity": event.severity,
            "time": event.time,
            "vm": xml.Reference(f"vms/{event.vm_id}") if event.vm_id else None,
        },
    )


def render_job(job: model.Job) -> xml.Element:
    return xml.entity(
        "job",
        f"jobs/{job.id}",
        job.id,
        {
            "description": job.description,
            "auto_cleared": True,
            "end_time": job.ended,
            "external": False,
            "last_updated": job.ended or job.started,
            "start_time": job.started,
            "status": job.status,
        },
    )
