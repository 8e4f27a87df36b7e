"""Certificates made for a test."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

LONG_AGO, LONG_AFTER = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)


class Authority:
    """A certificate authority that writes what it issues into a folder.

    Args:
        folder: where the files go.
        name: of the authority; its own certificate is `NAME.crt`.
    """

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._ca = trustme.CA(organization_name=name)
        self._folder = folder
        self.file = folder / f"{name}.crt"
        self._ca.cert_pem.write_to_path(self.file)

    def issue(self, name: str, *identities: str, expired: bool = False, early: bool = False) -> dict[str, Path]:
        """`NAME.crt` and `NAME.key`, over whatever they held; as the options `tls_cert` and `tls_key`.

        Args:
            name: of the files.
            identities: host names and addresses; `localhost` and `127.0.0.1` when none is given.
            expired: since the end of 2019.
            early: not valid before 2120.
        """
        year, dates = timedelta(days=365), {}
        if expired:
            dates = {"not_before": LONG_AGO - year, "not_after": LONG_AGO}
        if early:
            dates = {"not_before": LONG_AFTER, "not_after": LONG_AFTER + year}
        leaf = self._ca.issue_cert(*(identities or ("localhost", "127.0.0.1")), common_name=name, **dates)
        files = {"tls_cert": self._folder / f"{name}.crt", "tls_key": self._folder / f"{name}.key"}
        files["tls_cert"].write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        files["tls_key"].write_bytes(leaf.private_key_pem.bytes())
        return files
