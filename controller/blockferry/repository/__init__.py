"""
The repository: every recovery point that is kept, under one URL.

    repository    the way in: make, open, list, read, verify
    draft         a recovery point that is being written
    writer        one disk of it: blocks in, chunks and an index out
    reader        one disk of a recovery point: an index in, pieces out
    copying       a recovery point that goes into another repository
    verification  everything that points need, read and checked
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

Who does what at once:

    backups of several VMs, by several controllers    all the same objects may be written twice, each time whole
    backup beside restore, list, verify               readers see a point when its manifest is there, then all of it is
"""

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
from blockferry.repository.settings import Settings as Settings
from blockferry.repository.verification import Damage as Damage
from blockferry.repository.verification import Hurt as Hurt
from blockferry.repository.verification import Step as Step
from blockferry.repository.verification import Verification as Verification
from blockferry.repository.writer import DiskWriter as DiskWriter
