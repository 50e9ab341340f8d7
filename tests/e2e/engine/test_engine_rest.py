"""
The engine simulator's REST format, read by the real SDK: sessions, entities, search, `follow`, OVF.
"""

from __future__ import annotations

import socket
import ssl
import urllib.error
import urllib.request
import uuid

import ovirtsdk4
import pytest
from lxml import etree
from ovirtsdk4 import types

from tests.e2e.engine.conftest import wait_for
from tests.lab import certificates
from tests.lab.lab import MiB

pytestmark = pytest.mark.lab


def port(engine) -> int:
    return int(engine.url.split(":")[2].split("/")[0])


def tls(lab) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(lab.ca))


def test_wrong_password_is_an_authentication_error(connect) -> None:
    with pytest.raises(ovirtsdk4.AuthError, match="access_denied"):
        connect(password="wrong").authenticate()


def test_certificate_of_another_authority_is_refused(connect, tmp_path) -> None:
    other = certificates.Authority(tmp_path)
    with pytest.raises(ovirtsdk4.Error, match="certificate"):
        connect(ca_file=str(other.pem)).authenticate()


def test_ca_can_be_fetched(engine, lab) -> None:
    url = engine.url.replace("/api", "/services/pki-resource?resource=ca-certificate&format=X509-PEM-CA")
    with urllib.request.urlopen(url, context=tls(lab)) as answer:
        assert answer.read() == lab.ca.read_bytes()


def test_token_is_dead_after_logout(engine, connect, lab) -> None:
    connection = connect()
    token = connection.authenticate()
    connection.close()
    request = urllib.request.Request(engine.url, headers={"Authorization": f"Bearer {token}"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, context=tls(lab))
    caught.value.close()
    assert caught.value.code == 401
    assert caught.value.headers["Content-Type"].startswith("text/html")
    assert caught.value.headers["WWW-Authenticate"] == 'Basic realm="RESTAPI"'


def test_sdk_survives_an_expired_session(engine, connection) -> None:
    first = connection.authenticate()
    engine.faults.expire_sessions()
    assert connection.system_service().get().product_info.version.full_version == "4.5.7-1.el9"
    assert connection.authenticate() != first


def test_restart_keeps_port_and_entities(engine, connection, idle_vm_service, idle_vm) -> None:
    url = engine.url
    assert idle_vm_service.get().name == idle_vm.name
    engine.faults.restart(seconds=0.1)
    assert engine.url == url
    assert idle_vm_service.get().name == idle_vm.name


def test_refused_request_is_a_fault(engine, idle_vm_service) -> None:
    engine.faults.refuse("/vms/", 409, "VM is locked.")
    with pytest.raises(ovirtsdk4.Error, match="VM is locked") as caught:
        idle_vm_service.get()
    assert (caught.value.code, caught.value.fault.reason) == (409, "Operation Failed")
    idle_vm_service.get()


def test_slow_answer_ends_in_a_timeout(engine, connect) -> None:
    engine.faults.delay("/vms", 2)
    connection = connect(timeout=1)
    # Not TimeoutError: the SDK's wait() does not tell timeouts from other transport errors.
    with pytest.raises(ovirtsdk4.Error, match="timed out"):
        connection.system_service().vms_service().list()


def test_silent_client_does_not_keep_others_out(engine, connection) -> None:
    with socket.create_connection(("localhost", port(engine))):
        assert connection.test()


def test_expect_100_continue_is_answered_once(engine, lab) -> None:
    body = b"grant_type=password"
    with (
        socket.create_connection(("localhost", port(engine)), timeout=20) as plain,
        tls(lab).wrap_socket(plain, server_hostname="localhost") as client,
    ):
        client.sendall(
            b"POST /ovirt-engine/sso/oauth/token HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
            b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        assert client.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert client.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_search_for_vms(connection, lab) -> None:
    prefix = f"search-{uuid.uuid4().hex[:8]}"
    names = [f"{prefix}-a", f"{prefix}-B"]
    ids = [lab.new_vm(name, disks=(), start=False).id for name in names]
    vms = connection.system_service().vms_service()

    def found(search: str, **options) -> list[str]:
        return [vm.name for vm in vms.list(search=search, **options)]

    assert found(f"name={prefix}-b") == [names[1]]
    assert found(f"name={prefix}-b", case_sensitive=True) == []
    assert found(f"name={prefix}*") == names
    assert found(f"name={prefix}* sortby name desc") == names[::-1]
    assert found(f'name="{prefix}-a" and cluster=Default') == names[:1]
    assert found(f"name={prefix}-a and cluster=Other") == []
    assert found(f"name={prefix}-a name={prefix}-b") == names
    assert found(f"name={prefix}* and name!={prefix}-a") == names[1:]
    assert found(f"name={prefix}* page 2", max=1) == names[1:]
    assert found(f"name={prefix}*", max=1) == names[:1]
    assert found(f"id={ids[1]}") == names[1:]
    with pytest.raises(ovirtsdk4.Error) as caught:
        found("colour=red")
    assert caught.value.code == 400


def test_unknown_entities_are_404_without_a_body(connection, idle_vm_service) -> None:
    vms = connection.system_service().vms_service()
    unknown = str(uuid.uuid4())
    for service in (
        vms.vm_service(unknown),
        vms.vm_service("not-a-uuid"),
        idle_vm_service.backups_service().backup_service(unknown),
        idle_vm_service.checkpoints_service().checkpoint_service(unknown),
        connection.system_service().disks_service().disk_service(unknown),
        connection.system_service().image_transfers_service().image_transfer_service(unknown),
    ):
        with pytest.raises(ovirtsdk4.NotFoundError) as caught:
            service.get()
        assert caught.value.code == 404
        assert caught.value.fault is None


def test_attachments_with_their_disks_in_one_request(idle_vm_service, idle_vm) -> None:
    plain = idle_vm_service.disk_attachments_service().list()
    assert [each.disk.provisioned_size for each in plain] == [None, None]
    followed = idle_vm_service.disk_attachments_service().list(follow="disk")
    assert [each.disk.id for each in followed] == [disk.id for disk in idle_vm.disks]
    assert [each.disk.provisioned_size for each in followed] == [10 * MiB, 3 * MiB + 512]
    assert [each.disk.format for each in followed] == [types.DiskFormat.COW, types.DiskFormat.RAW]
    assert [each.interface for each in followed] == [
        types.DiskInterface.VIRTIO,
        types.DiskInterface.VIRTIO_SCSI,
    ]


def test_nested_follow(idle_vm_service) -> None:
    vm = idle_vm_service.get(follow="disk_attachments.disk,snapshots")
    assert [each.disk.backup for each in vm.disk_attachments] == [
        types.DiskBackup.INCREMENTAL,
        types.DiskBackup.NONE,
    ]
    assert [each.snapshot_type for each in vm.snapshots] == [types.SnapshotType.ACTIVE]


def test_host_tells_how_to_reach_it(connection, lab) -> None:
    hosts = connection.system_service().hosts_service()
    (found,) = hosts.list(search=f"hw_id={lab.host.id} and datacenter=Default and status=Up")
    assert found.id == lab.host.id
    assert (found.address, found.ssh.port) == (lab.host.address, lab.host.ssh_port)
    assert found.ssh.public_key == lab.host.ssh_public_key
    assert found.ssh.fingerprint == lab.host.ssh_fingerprint


def test_vm_status_and_host_follow_the_host(connection, vm_service, lab, small_vm) -> None:
    vm = vm_service.get()
    assert vm.status == types.VmStatus.UP
    assert connection.follow_link(vm.host).id == lab.host.id
    lab.host.pause_vm(small_vm.id)
    assert vm_service.get().status == types.VmStatus.PAUSED
    lab.host.destroy_vm(small_vm.id)
    vm = vm_service.get()
    assert vm.status == types.VmStatus.DOWN
    assert vm.host is None


def test_cluster_data_center_and_storage(connection, idle_vm_service) -> None:
    cluster = connection.follow_link(idle_vm_service.get().cluster)
    assert (cluster.version.major, cluster.version.minor) == (4, 7)
    system = connection.system_service()
    (center,) = system.data_centers_service().list(search="storage.name=data1", case_sensitive=True)
    assert center.id == cluster.data_center.id
    (domain,) = system.storage_domains_service().list(search="name=data1")
    (disk, _) = idle_vm_service.disk_attachments_service().list(follow="disk")
    assert disk.disk.storage_domains[0].id == domain.id


def test_ovf_names_vm_and_disks(idle_vm_service, idle_vm) -> None:
    vm = idle_vm_service.get(all_content=True)
    envelope = etree.fromstring(vm.initialization.configuration.data.encode())
    assert envelope.findtext("Content/Name") == idle_vm.name
    assert envelope.findtext("Content/Section/Description") == "debian_9"
    ovf = envelope.nsmap["ovf"]
    sizes = {
        file.get(f"{{{ovf}}}href").split("/")[0]: int(file.get(f"{{{ovf}}}size"))
        for file in envelope.findall("References/File")
    }
    assert sizes == {disk.id: disk.size for disk in idle_vm.disks}
    formats = [disk.get(f"{{{ovf}}}volume-format") for disk in envelope.findall("Section/Disk")]
    assert formats == ["COW", "RAW"]
    assert idle_vm_service.get().initialization is None


def test_events_by_correlation_id(connection, vm_service, small_vm) -> None:
    trace = f"trace-{uuid.uuid4().hex[:8]}"
    vm_service.stop(query={"correlation_id": trace})
    wait_for(lambda: vm_service.get().status == types.VmStatus.DOWN)
    events = connection.system_service().events_service()
    (event,) = events.list(search=f"correlation_id={trace}")
    assert (event.code, event.vm.id) == (33, small_vm.id)
    assert small_vm.name in event.description
    assert events.list(from_=event.index) == []
    assert events.list(max=1)[0].index == event.index
    (again,) = events.list(search=f"type=33 and event_vm={small_vm.name}")
    assert again.id == event.id


def test_malformed_body_is_a_fault(connection, engine, lab) -> None:
    request = urllib.request.Request(
        f"{engine.url}/imagetransfers",
        data=b"<image_transfer>",
        headers={"Authorization": f"Bearer {connection.authenticate()}"},
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, context=tls(lab))
    with caught.value:
        fault = etree.fromstring(caught.value.read())
    assert (caught.value.code, fault.tag) == (400, "fault")
