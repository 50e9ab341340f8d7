"""What a restore reads in a VM's configuration, and what it changes."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from blockferry import errors
from blockferry.jobs import configuration

ONE = "11111111-aaaa-4aaa-8aaa-111111111111"
TWO = "22222222-bbbb-4bbb-8bbb-222222222222"
NEW = "33333333-cccc-4ccc-8ccc-333333333333"
DOMAIN = "dddddddd-0000-4000-8000-0000000000d1"
VOLUME = "1a1a1a1a-0000-4000-8000-00000000001a"

OVF = f"""<?xml version="1.0" encoding="UTF-8"?>
<ovf:Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1/" xmlns:rasd="rasd" xmlns:xsi="xsi">
  <References>
    <File ovf:href="{ONE}/{VOLUME}" ovf:id="{VOLUME}"/>
    <File ovf:href="{TWO}/{VOLUME}" ovf:id="{VOLUME}"></File>
    <Nic ovf:id="{NEW}"/>
  </References>
  <Section xsi:type="ovf:DiskSection_Type">
    <Disk ovf:diskId="{VOLUME}" ovf:fileRef="{ONE}/{VOLUME}" ovf:boot="true"/>
    <Disk ovf:diskId="{VOLUME}" ovf:fileRef='{TWO}/{VOLUME}' ovf:boot="false"/>
  </Section>
  <Content ovf:id="out" xsi:type="ovf:VirtualSystem_Type"><Name>db01</Name><ClusterName>R&amp;D</ClusterName>
    <Section>
      <Item><rasd:Caption>memory</rasd:Caption><rasd:ResourceType>4</rasd:ResourceType></Item>
      <Item><rasd:HostResource>{ONE}/{VOLUME}</rasd:HostResource><rasd:StorageId>{DOMAIN}</rasd:StorageId></Item>
      <Item><rasd:HostResource>{TWO.upper()}/{VOLUME}</rasd:HostResource></Item>
    </Section>
  </Content>
</ovf:Envelope>"""


def test_the_cluster_is_read_as_it_is_called() -> None:
    assert configuration.cluster_name(OVF) == "R&D"
    for text in ("", OVF.replace("R&amp;D", "")):
        with pytest.raises(errors.NotFound, match="names no cluster"):
            configuration.cluster_name(text)


def test_storage_domains_are_those_of_the_disks_that_name_one() -> None:
    assert configuration.storage_domains(OVF) == {ONE: DOMAIN}
    assert configuration.storage_domains("") == {}


def test_disks_are_in_the_order_of_the_configuration() -> None:
    assert configuration.disk_order(OVF) == [ONE, TWO]
    assert configuration.disk_order("") == []


def test_disks_get_their_new_ids_and_the_others_are_left_out() -> None:
    changed = configuration.with_disks(OVF, {ONE: NEW})
    assert ONE not in changed
    assert TWO not in changed.lower()
    for place in (f'href="{NEW}/{VOLUME}"', f'fileRef="{NEW}/{VOLUME}"', f"HostResource>{NEW}/{VOLUME}<"):
        assert changed.count(place) == 1
    document = ET.fromstring(changed)
    assert [len(list(document.iter(tag))) for tag in ("File", "Disk", "Item", "Nic")] == [1, 1, 2, 1]
    assert '<Content ovf:id="out" xsi:type="ovf:VirtualSystem_Type">' in changed, "prefixes stay as they are"


def test_disks_that_keep_their_ids_change_nothing() -> None:
    assert configuration.with_disks(OVF, {ONE: ONE, TWO: TWO}).lower() == OVF.lower()
