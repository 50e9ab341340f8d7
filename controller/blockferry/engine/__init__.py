"""
The oVirt engine: its VMs, backups, checkpoints and transfers, through its REST API.

    with engine.connect(url, username, password, ca_file) as connection:
        vm = connection.find_vm("db01")
        ovf = connection.ovf(vm)
        disks = [disk for disk in connection.disks(vm) if disk.obstacle is None]
        with connection.backup(vm, disks, since=checkpoint_id) as backup:
            for disk in backup.disks:
                with backup.transfer(disk) as transfer:
                    read(transfer)

Modules, leaves first:

    model       plain values: Vm, Disk, Checkpoint, Host, Transfer …
    polling     deadlines and pauses
    faults      the border: foreign errors become ours
    sso         the token
    session     requests, from any thread
    events      the engine's own explanations
    records     what the engine remembers of backups
    inventory   looking things up
    transfers   image transfers
    starting, ending, backups   a backup's life
    disks       making, writing, attaching and removing disks
    machines    making VMs from their configurations
    connection  the whole, for jobs

The only package that imports ovirtsdk4. What it knows about engines comes from ovirt-engine's sources and the SDK's.
"""

from blockferry.engine.backups import Backup as Backup
from blockferry.engine.connection import Connection as Connection
from blockferry.engine.connection import connect as connect
from blockferry.engine.model import BackupDisk as BackupDisk
from blockferry.engine.model import Checkpoint as Checkpoint
from blockferry.engine.model import Disk as Disk
from blockferry.engine.model import Host as Host
from blockferry.engine.model import JournalEntry as JournalEntry
from blockferry.engine.model import NewDisk as NewDisk
from blockferry.engine.model import StorageDomain as StorageDomain
from blockferry.engine.model import Transfer as Transfer
from blockferry.engine.model import Transferred as Transferred
from blockferry.engine.model import Vm as Vm
from blockferry.engine.polling import Deadlines as Deadlines
from blockferry.engine.polling import Patience as Patience
