"""
The place that holds a repository: named objects, and nothing that knows what they mean.

    contract    what every store does
    place       the store that a URL means
    directory   of this machine, or of a file server that is mounted here
    bucket      of an object store: S3 and what speaks it, Azure, Google Cloud Storage
    profile     the S3 credentials that stand in files
    faults      the border where obstore's exceptions become ours

An object is replaced whole or not at all, for every reader; whether it survives a power failure is decided by the batch
it was put in:

    with store.batch() as batch:
        store.put("chunks/…", data)             may be lost, or torn, until…
        batch.commit("vms/…/manifest.json", m)  …this: all that was put since the batch began is durable, then m is
"""

from blockferry.repository.store.contract import Batch as Batch
from blockferry.repository.store.contract import Durability as Durability
from blockferry.repository.store.contract import Listed as Listed
from blockferry.repository.store.contract import Store as Store
from blockferry.repository.store.place import beside as beside
from blockferry.repository.store.place import connect as connect
from blockferry.repository.store.place import create as create
