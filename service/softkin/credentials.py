"""The certificate of the gRPC port: read, checked, and read again when it has been renewed."""

from __future__ import annotations

import codecs
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from softkin.errors import InvalidInputError
from softkin.logs import log, log_line
from softkin.pipes import is_pipe

CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
"""What gRPC's TLS library knows of elliptic curves."""
COMMON_CURVES = CURVES[:2]
"""What clients that are made with that library take, softkin's among them."""
RSA_PSS = "1.2.840.113549.1.1.10"
"""The algorithm of a key that is for RSA-PSS signatures alone (RFC 4055), which that library does not know."""


class _Files(NamedTuple):
    cert: bytes
    key: bytes
    client_ca: bytes | None


class ServerCertificate:
    """A certificate whose files may be replaced at any time.

    They are read for every new connection; one that is being established meanwhile never sees a half-written or
    mismatched pair: until the files are right again, the previous ones are used, and the log says so. Connections that
    are open stay as they are. Where one of the files is a pipe, all are read once.

    Args:
        cert: PEM file of the certificate, followed by those that link it to its authority.
        key: PEM file of its private key, without a password.
        client_ca: PEM file of the authorities of client certificates, which are required then; None for no such.

    Raises:
        InvalidInputError: names the file, what is wrong with it and what to do.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        self._paths = {"tls_cert": cert, "tls_key": key, "tls_client_ca": client_ca}
        self._lock = threading.Lock()
        self._fault = ""
        self._files = self._read()
        self._configuration, self._expires = self._check(self._files)
        log.info(log_line("certificate", file=cert, expires=self._expires.isoformat()))

    def credentials(self) -> grpc.ServerCredentials:
        """What `add_secure_port` takes; for one port."""
        given = self._configuration

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            with self._lock:
                self._look_again()
                if self._configuration is given:
                    return None
                given = self._configuration
                return given

        return grpc.dynamic_ssl_server_credentials(
            given,
            renewed,  # type: ignore[arg-type]  # None means no change, which its stub does not know
            require_client_authentication=self._paths["tls_client_ca"] is not None,
        )

    def expires(self) -> float:
        """Unix time at which the first certificate of the chain expires, in seconds."""
        with self._lock:
            self._look_again()
            return self._expires.timestamp()

    def _look_again(self) -> None:
        if any(path is not None and is_pipe(path) for path in self._paths.values()):
            return
        fault = ""
        try:
            files = self._read()
            if files != self._files:
                self._configuration, self._expires = self._check(files)
                self._files = files
                log.info(log_line("certificate_renewed", expires=self._expires.isoformat()))
        except InvalidInputError as e:
            fault = str(e)
        if fault and fault != self._fault:
            log.warning(log_line("certificate_kept", expires=self._expires.isoformat(), reason=fault))
        self._fault = fault

    def _read(self) -> _Files:
        found: dict[str, bytes | None] = {}
        for option, path in self._paths.items():
            try:
                found[option] = None if path is None else path.read_bytes()
            except OSError as e:
                message = f"{path}: cannot be read ({e.strerror}); check path and rights"
                raise InvalidInputError(option, message) from None
            if (found[option] or b"").startswith(codecs.BOM_UTF8 + b"-----BEGIN"):
                raise InvalidInputError(option, f"{path}: begins with a byte order mark; save it without")
        return _Files(found["tls_cert"] or b"", found["tls_key"] or b"", found["tls_client_ca"])

    def _check(self, files: _Files) -> tuple[grpc.ServerCertificateConfiguration, datetime]:
        chain = self._certificates("tls_cert", files.cert)
        self._refuse_unknown_to_grpc(chain[0])
        key = self._private_key(files.key)
        if key.public_key() != chain[0].public_key():
            own = [_subject(c) for c in chain[1:] if _is_key_of(key, c)]
            remedy = f"put that of {own[0]} first" if own else "give the two that were issued together"
            raise InvalidInputError(
                "tls_key",
                f"{self._paths['tls_key']}: is not the key of the first certificate in {self._paths['tls_cert']} "
                f"({_subject(chain[0])}); {remedy}",
            )
        now = datetime.now(UTC)
        for certificate in chain:
            self._refuse_expired("tls_cert", certificate, now)
            self._refuse_early(certificate, now)
        if files.client_ca is not None:
            authorities = self._certificates("tls_client_ca", files.client_ca)
            # An old authority may stay beside its successor until the last client has changed over.
            self._refuse_expired("tls_client_ca", max(authorities, key=lambda c: c.not_valid_after_utc), now)
        configuration = grpc.ssl_server_certificate_configuration(
            [(files.key, files.cert)], root_certificates=files.client_ca
        )
        self._warn_of_rare(chain[0])
        return configuration, min(c.not_valid_after_utc for c in chain)

    def _certificates(self, option: str, pem: bytes) -> list[x509.Certificate]:
        try:
            found = x509.load_pem_x509_certificates(pem)
        except ValueError:
            raise InvalidInputError(
                option,
                f"{self._paths[option]}: not a PEM file of certificates; it must have -----BEGIN CERTIFICATE-----",
            ) from None
        except x509.InvalidVersion as e:
            raise self._damaged(option, e) from None
        try:
            for certificate in found:
                _read_whole(certificate)
        except ValueError as e:
            raise self._damaged(option, e) from None
        return found

    def _damaged(self, option: str, reason: Exception) -> InvalidInputError:
        return InvalidInputError(
            option, f"{self._paths[option]}: has a certificate that is damaged ({reason}); copy or issue it again"
        )

    def _private_key(self, pem: bytes) -> PrivateKeyTypes:
        path = self._paths["tls_key"]
        try:
            return serialization.load_pem_private_key(pem, password=None)
        except TypeError:
            raise InvalidInputError(
                "tls_key", f"{path}: the key is encrypted; remove the password (openssl pkey -in FILE -out FILE)"
            ) from None
        except (ValueError, UnsupportedAlgorithm):
            raise InvalidInputError(
                "tls_key", f"{path}: not a PEM file of a private key; it must have -----BEGIN PRIVATE KEY-----"
            ) from None

    def _refuse_unknown_to_grpc(self, certificate: x509.Certificate) -> None:
        """gRPC would say of such a certificate at the start that it has no port, and of a renewed one nothing."""
        try:
            key = certificate.public_key()
        except (UnsupportedAlgorithm, ValueError):  # the latter of a point that is on no curve
            key = None
        oid = getattr(certificate, "public_key_algorithm_oid", None)  # since cryptography 43
        plain_rsa = isinstance(key, rsa.RSAPublicKey) and (oid is None or oid.dotted_string != RSA_PSS)
        known_curve = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, CURVES)
        if not (plain_rsa or known_curve or isinstance(key, ed25519.Ed25519PublicKey)):
            raise InvalidInputError(
                "tls_cert",
                f"{self._paths['tls_cert']}: gRPC knows no such key as that of {_subject(certificate)}; use RSA, or "
                "ECDSA on P-256 or P-384",
            )

    def _warn_of_rare(self, certificate: x509.Certificate) -> None:
        """Those who cannot connect to it learn no more than that the connection was closed."""
        key = certificate.public_key()
        if isinstance(key, rsa.RSAPublicKey) or isinstance(getattr(key, "curve", None), COMMON_CURVES):
            return
        remedy = "many gRPC clients cannot connect, softkin's too: use RSA, or ECDSA on P-256 or P-384"
        log.warning(log_line("certificate_rare", file=self._paths["tls_cert"], remedy=remedy))

    def _refuse_expired(self, option: str, certificate: x509.Certificate, now: datetime) -> None:
        expires = certificate.not_valid_after_utc
        if expires <= now:
            raise InvalidInputError(
                option,
                f"{self._paths[option]}: the certificate of {_subject(certificate)} expired on "
                f"{expires:%Y-%m-%d %H:%M} UTC; renew it",
            )

    def _refuse_early(self, certificate: x509.Certificate, now: datetime) -> None:
        begins = certificate.not_valid_before_utc
        if begins > now:
            raise InvalidInputError(
                "tls_cert",
                f"{self._paths['tls_cert']}: the certificate of {_subject(certificate)} is not valid before "
                f"{begins:%Y-%m-%d %H:%M:%S} UTC; wait until then, or set this machine's clock right",
            )


def _read_whole(certificate: x509.Certificate) -> None:
    """Read every field that is used later: it is parsed only then, and would make a scrape of the metrics fail."""
    _subject(certificate)
    _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc


def _is_key_of(key: PrivateKeyTypes, certificate: x509.Certificate) -> bool:
    try:
        return bool(certificate.public_key() == key.public_key())
    except (UnsupportedAlgorithm, ValueError):
        return False


def _subject(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or f"serial number {certificate.serial_number:x}"
