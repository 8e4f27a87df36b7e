"""A certificate whose files are replaced by damaged ones."""

from __future__ import annotations

import base64
import logging
from datetime import UTC, datetime

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from authority import Authority
from softkin.credentials import ServerCertificate
from softkin.errors import InvalidInputError

FLIPS = (0x55, 0xFF)
"""The first leaves most bytes a character."""


@pytest.fixture
def files(tmp_path):
    """Of a server that asks its clients for certificates."""
    authority = Authority(tmp_path)
    return {**authority.issue("server"), "tls_client_ca": authority.file}


def damaged(pem, at, flip):
    """A PEM file with one byte changed of what it encodes."""
    _, begin, body, end, _ = pem.split(b"-----", 4)
    der = bytearray(base64.b64decode(body))
    if at >= len(der):
        return None
    der[at] ^= flip
    return b"".join([b"-----", begin, b"-----\n", base64.encodebytes(der), b"-----", end, b"-----\n"])


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@pytest.mark.parametrize("flip", FLIPS)
@pytest.mark.parametrize("option", ["tls_cert", "tls_key", "tls_client_ca"])
def test_no_damage_keeps_the_metrics_from_being_read(files, option, flip):
    """Its date is one of them: whatever the file has become, the date is that of the certificate in force."""
    certificate = ServerCertificate(files["tls_cert"], files["tls_key"], files["tls_client_ca"])
    before, pem, at = certificate.expires(), files[option].read_bytes(), 0

    while (wrong := damaged(pem, at, flip)) is not None:
        files[option].write_bytes(wrong)
        assert certificate.expires() > 0
        at += 1

    files[option].write_bytes(pem)
    assert certificate.expires() == before
    assert at > 100


@pytest.mark.parametrize(
    ("option", "field", "instead"),
    [
        ("tls_cert", b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x7c"),  # its version
        ("tls_client_ca", b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x7c"),
        ("tls_cert", b"\x0c\x06server", b"\x0c\x06\xff\xfe\xff\xfe\xff\xfe"),  # its subject
        ("tls_cert", b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00\x04", None),  # its key: on no curve
    ],
)
def test_a_start_with_a_damaged_certificate_says_which_file_it_is(files, option, field, instead):
    """Where the certificate is read, not where a field of it is needed."""
    _, begin, body, end, rest = files[option].read_bytes().split(b"-----", 4)
    der = base64.b64decode(body)
    assert der.count(field) == 1
    wrong = der.replace(field, instead) if instead else der.replace(field, field[:-1] + b"\x02")
    parts = [b"-----", begin, b"-----\n", base64.encodebytes(wrong), b"-----", end, b"-----", rest]
    files[option].write_bytes(b"".join(parts))

    with pytest.raises(InvalidInputError, match=f"{option}: {files[option]}: (has a certificate that is damaged|gRPC)"):
        ServerCertificate(files["tls_cert"], files["tls_key"], files["tls_client_ca"])


def test_a_damaged_certificate_is_found_anywhere_in_a_chain(files):
    """The date of each is needed: a scrape of the metrics would fail on it."""
    pem = files["tls_cert"].read_bytes()
    name = base64.b64decode(pem.split(b"-----")[2]).index(b"\x0c\x06server") + 2
    files["tls_cert"].write_bytes(pem + damaged(pem, name, 0xFF))

    with pytest.raises(InvalidInputError, match=f"tls_cert: {files['tls_cert']}: has a certificate that is damaged"):
        ServerCertificate(files["tls_cert"], files["tls_key"])


@pytest.mark.skipif(
    not hasattr(x509.Certificate, "public_key_algorithm_oid"), reason="older versions of cryptography cannot tell"
)
def test_a_key_for_rsa_pss_alone_is_refused(tmp_path):
    """gRPC would say of it no more than that it has no port."""
    leaf = trustme.CA().issue_cert("localhost", key_type=trustme.KeyType.RSA)
    der = bytearray(base64.b64decode(leaf.cert_chain_pems[0].bytes().split(b"-----")[2]))
    any_rsa = bytes.fromhex("300d06092a864886f70d0101010500")  # an algorithm, with no parameters
    at = der.index(any_rsa)
    for outer in (0, 4, at - 4):  # the certificate, what of it is signed, its key: each two bytes shorter
        der[outer + 2 : outer + 4] = (int.from_bytes(der[outer + 2 : outer + 4], "big") - 2).to_bytes(2, "big")
    for_pss = bytes(der).replace(any_rsa, bytes.fromhex("300b06092a864886f70d01010a"))
    cert, key = tmp_path / "server.crt", tmp_path / "server.key"
    cert.write_bytes(b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(for_pss) + b"-----END CERTIFICATE-----\n")
    key.write_bytes(leaf.private_key_pem.bytes())

    with pytest.raises(InvalidInputError, match=r"gRPC knows no such key as that of .*; use RSA, or ECDSA"):
        ServerCertificate(cert, key)


def test_a_key_for_ed25519_is_taken_with_a_warning(tmp_path, caplog):
    """gRPC's server knows it, and many of its clients do not."""
    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server")])
    begins, ends = (datetime(year, 1, 1, tzinfo=UTC) for year in (2020, 2100))
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, begins, ends)
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (tmp_path / "server.crt").write_bytes(builder.sign(key, None).public_bytes(pem))
    (tmp_path / "server.key").write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))

    ServerCertificate(tmp_path / "server.crt", tmp_path / "server.key")

    [line] = caplog.messages
    assert line.startswith(f"event=certificate_rare file={tmp_path / 'server.crt'} remedy=")


def test_a_chain_that_begins_with_its_authority_is_refused_with_what_comes_first(files):
    """The certificate itself is there, and the key is its own: only the order is wrong."""
    files["tls_cert"].write_bytes(files["tls_client_ca"].read_bytes() + files["tls_cert"].read_bytes())

    with pytest.raises(InvalidInputError, match=r"is not the key of the first .*; put that of CN=server,.* first$"):
        ServerCertificate(files["tls_cert"], files["tls_key"])


def test_a_key_of_none_in_the_chain_is_refused_without_a_word_on_its_order(files, tmp_path):
    """To put another certificate first would not help."""
    other = Authority(tmp_path, "other").issue("other")["tls_key"]
    files["tls_cert"].write_bytes(files["tls_cert"].read_bytes() + files["tls_client_ca"].read_bytes())

    with pytest.raises(InvalidInputError, match=r"is not the key of the first .*; give the two that were issued tog"):
        ServerCertificate(files["tls_cert"], other)


@pytest.mark.parametrize(
    ("dates", "message"),
    [
        ({"expired": True}, "CN=link.* expired on 2020-01-01"),
        ({"early": True}, "CN=link.* not valid before 2120"),
    ],
)
def test_every_certificate_of_a_chain_must_be_valid_now(files, tmp_path, dates, message):
    """Clients check each on the way to the authority."""
    link = Authority(tmp_path, "other").issue("link", **dates)["tls_cert"]
    files["tls_cert"].write_bytes(files["tls_cert"].read_bytes() + link.read_bytes())

    with pytest.raises(InvalidInputError, match=message):
        ServerCertificate(files["tls_cert"], files["tls_key"])


def test_a_chain_lasts_until_the_first_of_it_expires(files):
    """Whichever that is: the date is what an alert goes by."""
    date = datetime(2100, 1, 1, tzinfo=UTC)
    link = trustme.CA().issue_cert("link", not_after=date).cert_chain_pems[0].bytes()
    files["tls_cert"].write_bytes(files["tls_cert"].read_bytes() + link)

    assert ServerCertificate(files["tls_cert"], files["tls_key"]).expires() == date.timestamp()


def test_an_authority_that_has_expired_may_stay_beside_its_successor_alone(files, tmp_path):
    """Until the last client has changed over; without one, no client could come in."""
    old = Authority(tmp_path, "old").issue("old", expired=True)["tls_cert"]
    both = tmp_path / "both.crt"
    both.write_bytes(old.read_bytes() + files["tls_client_ca"].read_bytes())

    with pytest.raises(InvalidInputError, match=r"tls_client_ca: .*old.crt: the cert.* expired on 2020-01-01"):
        ServerCertificate(files["tls_cert"], files["tls_key"], old)
    ServerCertificate(files["tls_cert"], files["tls_key"], both)


def test_a_renewal_is_logged_once_with_the_new_date(files, tmp_path, caplog):
    """Whoever has renewed a certificate looks whether the server has taken it."""
    caplog.set_level(logging.INFO)
    certificate = ServerCertificate(files["tls_cert"], files["tls_key"])
    caplog.clear()
    Authority(tmp_path, "next").issue("server")

    expires = [certificate.expires() for _ in range(3)]

    [line] = caplog.messages
    date = datetime.fromtimestamp(expires[0], UTC)
    assert line == f"event=certificate_renewed expires={date.isoformat()}"


def test_a_file_that_is_damaged_before_anybody_connects_is_named_once(files, caplog):
    """The certificate that was read at the start stays in force; when the file is itself again, there is no news."""
    caplog.set_level(logging.INFO)
    certificate, key = ServerCertificate(files["tls_cert"], files["tls_key"]), files["tls_key"].read_bytes()
    files["tls_key"].write_bytes(b"")

    found = [certificate.expires() for _ in range(3)]
    files["tls_key"].write_bytes(key)
    expires = {datetime.fromtimestamp(at, UTC).isoformat() for at in (*found, certificate.expires())}

    [date], [start, kept] = expires, caplog.messages
    assert start == f"event=certificate file={files['tls_cert']} expires={date}"
    assert kept.startswith(f'event=certificate_kept expires={date} reason="tls_key: {files["tls_key"]}: not a PEM file')
