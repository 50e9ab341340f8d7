"""
The repository: every recovery point that is kept, under one URL.

    repository    the way in: make, open, list, read, verify
    draft         a recovery point that is being written
    writer        one disk of it: blocks in, chunks and an index out
    reader        one disk of a recovery point: an index in, pieces out
    copying       a recovery point that goes into another repository
    verification  everything that points need, read and checked
    selection     what of it is read when that is only a share
    marks         chunks that were found to be damaged
    trash         deleted points, and points that are pinned
    retention     which points a policy keeps
    collection    removing what nobody needs
    needs         what points need, in little memory
    locks         who uses the repository, and for what
    reliance      what somebody who writes relies on
    manifest      the document that commits a point
    index         which chunk holds each range of a disk
    chunks        stored content, named by its digest
    settings      `repository.json`
    encryption    a store in which every object is sealed
    keys          what opens an encrypted repository: the master key, wrapped
    keyring       the keys of one repository, listed and changed
    keytext       a key as text that can be printed and typed
    documents     JSON that says which format it is in
    layout        the names of all this
    store         named objects in a directory or a bucket, and the border to obstore

Every point is complete by itself; there are no chains. Points share chunks and pages of indexes, which are never
changed once they are written. What is not named by a manifest is invisible. `docs/format.md` has every byte.

What may run beside what, by as many controllers as there are:

    beside          backup, copy    restore, serve, verify    delete, prune    collect
    backup, copy    yes             yes                       yes: 1           yes: 3
    restore, …      yes             yes                       yes: 2           yes: 2
    delete, prune   yes: 1          yes: 2                    yes              yes: 2
    undelete        yes             yes                       yes              Conflict, while something is removed
    collect         yes: 3          yes: 2                    yes: 2           Conflict, for the second one

1 What the base of a running backup needs stays, deleted or not. 2 What was deleted stays in the trash for a while, and
while somebody reads who began before. 3 A writer answers what is condemned (see `locks`).

A backup and a copy write objects that are there already once more, whole, or not at all; a reader sees a point when its
manifest is there, and then all of it is.
"""

from blockferry.repository.collection import Amount as Amount
from blockferry.repository.collection import Collected as Collected
from blockferry.repository.collection import Times as Times
from blockferry.repository.copying import Copied as Copied
from blockferry.repository.draft import Draft as Draft
from blockferry.repository.keyring import Keyring as Keyring
from blockferry.repository.keys import KeyFile as KeyFile
from blockferry.repository.keys import MasterKey as MasterKey
from blockferry.repository.keys import Passphrase as Passphrase
from blockferry.repository.keys import Secret as Secret
from blockferry.repository.keys import WrappedKey as WrappedKey
from blockferry.repository.manifest import Bytes as Bytes
from blockferry.repository.manifest import Carrier as Carrier
from blockferry.repository.manifest import DiskManifest as DiskManifest
from blockferry.repository.manifest import File as File
from blockferry.repository.manifest import Manifest as Manifest
from blockferry.repository.manifest import Unreadable as Unreadable
from blockferry.repository.manifest import Vm as Vm
from blockferry.repository.reader import DiskReader as DiskReader
from blockferry.repository.reader import Piece as Piece
from blockferry.repository.repository import Repository as Repository
from blockferry.repository.retention import Decision as Decision
from blockferry.repository.retention import Policy as Policy
from blockferry.repository.settings import Settings as Settings
from blockferry.repository.trash import Trashed as Trashed
from blockferry.repository.verification import Damage as Damage
from blockferry.repository.verification import Hurt as Hurt
from blockferry.repository.verification import Step as Step
from blockferry.repository.verification import Verification as Verification
from blockferry.repository.writer import DiskWriter as DiskWriter
