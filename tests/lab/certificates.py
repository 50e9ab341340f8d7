"""
The lab's certificate authority.
"""

from __future__ import annotations

from pathlib import Path

import trustme


class Authority:
    """
    A CA with its files in a directory.

    pem: the CA's certificate, what clients trust.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ca = trustme.CA(organization_name="Blockferry lab")
        self.pem = directory / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.pem))

    def issue(self, name: str, *identities: str) -> Certificate:
        """Issue a server certificate for host names and IP addresses."""
        return Certificate(self._directory, name, self._ca.issue_cert(*identities, common_name=identities[0]))


class Certificate:
    """
    A server certificate in files.  certificate: PEM with the whole chain.  key: PEM, mode 0600.
    """

    def __init__(self, directory: Path, name: str, leaf: trustme.LeafCert) -> None:
        self.certificate = directory / f"{name}.pem"
        self.key = directory / f"{name}.key"
        self.certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        self.key.touch(mode=0o600)
        leaf.private_key_pem.write_to_path(str(self.key))
