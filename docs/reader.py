#!/usr/bin/env python3
"""
Restores a disk from a Blockferry repository in a directory, without Blockferry: written from format.md alone.

    python3 reader.py REPOSITORY                        lists its points and their disks
    python3 reader.py REPOSITORY POINT DISK OUTPUT      restores a disk to a file; ids by their first digits

An encrypted repository is opened by BLOCKFERRY_KEY, a key file or an exported master key, or else by
BLOCKFERRY_REPOSITORY_PASSPHRASE. For a bucket: copy it into a directory first, with the service's own tools.

Needs Python 3.9, and the packages blake3 and zstandard, and cryptography for encrypted ones.
"""

import hashlib
import json
import os
import struct
import sys
import unicodedata
from pathlib import Path

import zstandard
from blake3 import blake3

CONTEXT = "Blockferry 2026-11-23 repository format 1: "
DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def check(condition, complaint):
    if not condition:
        sys.exit(complaint)


def cipher(key):
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 -- plain ones are read without it

    return AESGCM(key)


def typed_key(path):
    """Return the kind and the 32 bytes of a key that was printed."""
    title, *lines = Path(path).read_text().split("\n")
    key = b""
    for number, line in enumerate([line for line in lines if line.strip()], 1):
        value = 0
        for digit in line.split(maxsplit=1)[1].upper().replace("-", "").replace(" ", "")[:13]:
            value = value * 32 + DIGITS.index({"O": "0", "I": "1", "L": "1"}.get(digit, digit))
        check(value < 2**64, f"Line {number} of the key has a wrong digit.")
        key += value.to_bytes(8, "big")
    return title.lower(), key


class Repository:
    def __init__(self, path):
        self.path = Path(path)
        self.settings = json.loads((self.path / "repository.json").read_text())
        check(self.settings["format"] == 1, "The repository is of another format.")
        self.master = self.open() if self.settings["encryption"] else None
        if self.master:
            what = "{format} {id} {window} {compression}".format(**self.settings)
            proof = blake3(what.encode(), key=self.derived("check")).hexdigest()
            check(proof == self.settings["encryption"]["check"], "The key is not that of this repository.")

    def derived(self, purpose):
        return blake3(self.master, derive_key_context=CONTEXT + purpose).digest()

    def open(self):
        """Return the master key."""
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 -- plain ones are read without it

        kind, key = "passphrase", b""
        if os.environ.get("BLOCKFERRY_KEY"):
            kind, key = typed_key(os.environ["BLOCKFERRY_KEY"])
        if kind == "blockferry master key 1":
            return key
        passphrase = unicodedata.normalize("NFC", os.environ.get("BLOCKFERRY_REPOSITORY_PASSPHRASE", "")).encode()
        for path in sorted(self.path.glob("keys/*.json")):
            found = json.loads(path.read_text())
            by, wrapped = found["by"], bytes.fromhex(found["wrapped"])
            if by["kind"] not in kind:
                continue
            if kind == "passphrase":
                costs = {name: by[name] for name in "nrp"}
                salt = bytes.fromhex(by["salt"])
                key = hashlib.scrypt(passphrase, salt=salt, dklen=32, maxmem=2**30, **costs)
            try:
                bound_to = f"{found['repository']} {found['id']}".encode()
                return cipher(key).decrypt(wrapped[:12], wrapped[12:], bound_to)
            except InvalidTag:
                continue
        sys.exit("The repository is encrypted, and no key opens it.")

    def get(self, name):
        """Return the content of an object."""
        stored = (self.path / name).read_bytes()
        if not self.master:
            return stored
        check(stored[:8] == b"BFen\1\0\0\0", f"{name} is not encrypted.")
        key = blake3(name.encode(), key=self.derived("objects")).digest()
        return cipher(key).decrypt(stored[8:20], stored[20:], stored[:8])

    def chunk(self, digest):
        """Return the content of a chunk, checked."""
        name = digest.hex()
        stored = self.get(f"chunks/{name[:2]}/{name}")
        magic, version, storage, _, length = struct.unpack("<4sBBHI", stored[:12])
        check((magic, version) == (b"BFch", 1) and length <= 2**25, f"{name} is no chunk.")
        content = zstandard.decompress(stored[12:], max_output_size=length) if storage else stored[12:]
        key = {"key": self.derived("names")} if self.master else {}
        check(blake3(content, **key).digest() == digest, f"Chunk {name} is damaged.")
        return content

    def points(self):
        """Return the manifests, oldest first."""
        paths = self.path.glob("vms/*/*/manifest.json")
        points = [json.loads(self.get(path.relative_to(self.path).as_posix())) for path in paths]
        return sorted(points, key=lambda point: point["created"])

    def restore(self, point, disk, output):
        """Write a disk to an open file that holds nothing yet; what is zero stays a hole."""
        root = self.get(f"vms/{point['vm']['id']}/{point['id']}/{disk['id']}.index")
        check(blake3(root).hexdigest() == disk["index"]["blake3"], "The index is damaged.")
        check(struct.unpack("<4sB", root[:5]) == (b"BFix", 1), "The index is of another format.")
        output.truncate(disk["size"])
        for number, _, digest in struct.iter_unpack("<II32s", root[24:]):
            page = self.chunk(digest)
            check(struct.unpack("<4sB", page[:5]) == (b"BFpg", 1), "A page is of another format.")
            for start, length, offset, chunk, _ in struct.iter_unpack("<III32s16s", page[12:]):
                output.seek(number * 2**28 + start)
                output.write(self.chunk(chunk)[offset : offset + length])


def main(path, point_id="", disk_id="", output=""):
    repository = Repository(path)
    for point in repository.points():
        for disk in point["disks"]:
            if not output:
                sys.stdout.write("{} {} {id} {size} {alias}\n".format(point["id"], point["vm"]["name"], **disk))
            elif point["id"].startswith(point_id) and disk["id"].startswith(disk_id):
                with open(output, "wb") as file:
                    return repository.restore(point, disk, file)
    check(not output, "There is no such point or disk.")
    return None


if __name__ == "__main__":
    check(len(sys.argv) in (2, 5), __doc__)
    main(*sys.argv[1:])
