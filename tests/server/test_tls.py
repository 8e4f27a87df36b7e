"""TLS and mutual TLS: who gets in, and what happens when certificates are renewed or wrong."""

from __future__ import annotations

import codecs
import logging
import socket
import ssl
from datetime import datetime, timedelta

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from grpc_health.v1 import health_pb2, health_pb2_grpc

from authority import LONG_AGO, Authority
from softkin.client import Client
from softkin.credentials import ServerCertificate
from softkin.errors import InvalidInputError, UnavailableError
from standin import StandIn

EXPIRY = "softkin_tls_certificate_expiry_seconds"


@pytest.fixture
def ca(tmp_path):
    """The authority that everybody here trusts."""
    return Authority(tmp_path)


@pytest.fixture
def other_ca(tmp_path):
    """One that nobody trusts."""
    return Authority(tmp_path, "other")


@pytest.fixture
def server_files(ca):
    """The server's certificate and key."""
    return ca.issue("server")


@pytest.fixture
def client_files(ca):
    """A client's certificate and key."""
    return ca.issue("client", "client.example")


def reach(running, **options):
    """Score one row, quickly: True, or the error."""
    with running.client(timeout_seconds=5, **options) as client:
        try:
            return len(client.score(np.zeros((1, 2, 3), np.float32))) == 1
        except UnavailableError as e:
            return str(e)


def peer_certificate(running):
    """The certificate that a new connection is shown."""
    return ssl.get_server_certificate(("127.0.0.1", running.server.port), timeout=20)


def peer_certificate_is(running, cert, trusted, client):
    """Whether a connection with a client certificate is shown the certificate of a file."""
    context = ssl.create_default_context(cafile=str(trusted))
    context.load_cert_chain(client["tls_cert"], client["tls_key"])
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", running.server.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as encrypted,
    ):
        shown = ssl.DER_cert_to_PEM_cert(encrypted.getpeercert(binary_form=True))
    return shown == cert.read_text()


def score_labels(code):
    """Of the counter of answers to Score."""
    return {
        "grpc_type": "UNARY",
        "grpc_service": "softkin.v1.OutlierService",
        "grpc_method": "Score",
        "grpc_code": code,
    }


def events(caplog):
    """The first word of every log line."""
    return [message.split()[0] for message in caplog.messages]


def test_a_client_that_trusts_the_authority_gets_the_numbers_of_scoring_in_process(start, ca, server_files, rows):
    """Encrypted, the same bits."""
    with start(StandIn(), **server_files).client(tls_ca=ca.file) as client:
        scores = client.score(rows(29))
        assert client.healthy()

    assert scores.p_value.tobytes() == StandIn().score(rows(29)).p_value.tobytes()


def test_a_server_of_another_authority_is_not_trusted(start, other_ca, server_files):
    """The client says that the certificate is why."""
    found = reach(start(StandIn(), **server_files), tls_ca=other_ca.file)

    assert "CERTIFICATE_VERIFY_FAILED" in found
    assert found.endswith("; give the authority that signed the server's certificate (tls_ca)")


def test_a_server_of_another_name_is_not_trusted_unless_that_name_is_asked_for(start, ca):
    """As for a probe that reaches softkin.example at 127.0.0.1."""
    running = start(StandIn(), **ca.issue("server", "softkin.example"))

    found = reach(running, tls_ca=ca.file)
    assert "127.0.0.1" in found
    assert found.endswith("; give the name that is in the server's certificate (tls_server_name)")
    assert reach(running, tls_ca=ca.file, tls_server_name="softkin.example") is True


def test_a_plaintext_client_gets_nothing_from_a_tls_port(start, server_files):
    """Not even health."""
    running = start(StandIn(), **server_files)

    with running.client(timeout_seconds=5) as client:
        assert not client.healthy()
    assert "; if the server speaks TLS, give tls_ca" in reach(running)


def test_a_tls_client_gets_nothing_from_a_plaintext_port(start, ca):
    """It does not fall back, and says what to do."""
    message = reach(start(StandIn()), tls_ca=ca.file)

    assert "handshake" in message.lower()
    assert message.endswith("leave tls_ca out, or start it with --tls-cert and --tls-key")


def test_mutual_tls_lets_in_who_has_a_certificate_of_the_authority(start, ca, other_ca, server_files, client_files):
    """No certificate, one of another authority, an expired one: no answer, health included."""
    running = start(StandIn(), **server_files, tls_client_ca=ca.file)
    strangers = [
        {},
        other_ca.issue("stranger", "client.example"),
        ca.issue("late", "client.example", expired=True),
    ]

    assert reach(running, tls_ca=ca.file, **client_files) is True
    for files in strangers:
        assert isinstance(reach(running, tls_ca=ca.file, **files), str)
        with running.client(timeout_seconds=5, tls_ca=ca.file, **files) as client:
            assert not client.healthy()


def test_a_renewed_certificate_serves_new_connections_while_open_ones_go_on(start, ca, server_files, rows, caplog):
    """No restart, no call lost; the metric and the log tell the new date."""
    caplog.set_level(logging.INFO, "softkin.server")
    running = start(StandIn(), **server_files)
    first, first_expiry = peer_certificate(running), running.sample(EXPIRY)
    with running.client(tls_ca=ca.file) as client:
        client.score(rows(1))

        ca.issue("server")
        second = peer_certificate(running)

        assert len(client.score(rows(2))) == 2
        assert reach(running, tls_ca=ca.file) is True
    assert first != second == server_files["tls_cert"].read_text()
    assert first_expiry > LONG_AGO.timestamp()
    assert running.sample("grpc_server_handled_total", **score_labels("UNAVAILABLE")) is None
    assert events(caplog).count("event=certificate") == events(caplog).count("event=certificate_renewed") == 1


@pytest.mark.parametrize(
    "step", ["key missing", "key not yet", "certificate cut", "expired", "early", "not PEM", "authority cut"]
)
def test_a_half_written_renewal_keeps_the_old_certificate_and_the_next_step_completes_it(
    start, ca, server_files, caplog, step
):
    """Whatever the order in which files are replaced; the log says once why the old one is kept."""
    client = ca.issue("client")
    running = start(StandIn(), **server_files, tls_client_ca=ca.file)
    cert, key = server_files.values()
    old = cert.read_bytes(), key.read_bytes(), ca.file.read_bytes()
    expiry = running.sample(EXPIRY)

    ca.issue("server", expired=step == "expired", early=step == "early")
    new = cert.read_bytes()
    if step == "key missing":
        key.unlink()
    if step == "key not yet":
        key.write_bytes(old[1])
    if step == "certificate cut":
        cert.write_bytes(new[:300])
    if step == "not PEM":
        key.write_bytes(b"")
    if step == "authority cut":
        ca.file.write_bytes(old[2][:300])
    trusted = ca.file.with_name("trusted.crt")
    trusted.write_bytes(old[2])

    for _ in range(3):
        assert reach(running, tls_ca=trusted, **client) is True
    assert running.sample(EXPIRY) == expiry
    [warning] = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warning.startswith("event=certificate_kept expires=")

    ca.file.write_bytes(old[2])
    ca.issue("server")
    assert peer_certificate_is(running, cert, trusted, client)
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1


def test_a_renewal_that_grpc_cannot_use_keeps_the_old_certificate(start, ca, server_files, caplog):
    """gRPC itself would keep it in silence, while log and metric told of the new one."""
    caplog.set_level(logging.INFO, "softkin.server")
    running = start(StandIn(), **server_files)
    before, expires = peer_certificate(running), running.sample(EXPIRY)

    self_signed(ca.file.parent, ec.generate_private_key(ec.SECP256K1()))

    assert peer_certificate(running) == before
    assert running.sample(EXPIRY) == expires
    assert events(caplog).count("event=certificate_kept") == 1
    assert "event=certificate_renewed" not in events(caplog)


def test_a_client_authority_can_be_exchanged_without_a_restart(start, ca, other_ca, server_files, client_files):
    """Clients of the new one come in, those of the old one do not any more."""
    newcomer = other_ca.issue("newcomer", "client.example")
    accepted = ca.file.with_name("accepted.crt")
    accepted.write_bytes(ca.file.read_bytes())
    running = start(StandIn(), **server_files, tls_client_ca=accepted)

    def found():
        return [reach(running, tls_ca=ca.file, **files) is True for files in (client_files, newcomer)]

    before = found()
    accepted.write_bytes(ca.file.read_bytes() + other_ca.file.read_bytes())
    between = found()
    accepted.write_bytes(other_ca.file.read_bytes())

    assert [before, between, found()] == [[True, False], [True, True], [False, True]]


def test_the_metric_gives_the_date_and_a_server_without_tls_has_none(start, server_files):
    """Unix time, of the certificate that is used."""
    expected = x509.load_pem_x509_certificates(server_files["tls_cert"].read_bytes())[0].not_valid_after_utc
    running = start(StandIn(), **server_files)

    assert running.sample(EXPIRY) == expected.timestamp()
    assert start(StandIn()).sample(EXPIRY) is None


def self_signed(folder, key):
    """Files of a server with a key of any kind."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(LONG_AGO).not_valid_after(LONG_AGO + timedelta(days=36500))
    certificate = builder.public_key(key.public_key()).sign(key, hashes.SHA256())
    files = {"tls_cert": folder / "server.crt", "tls_key": folder / "server.key"}
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    files["tls_cert"].write_bytes(certificate.public_bytes(pem))
    files["tls_key"].write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    return files


@pytest.mark.parametrize(
    ("key", "rare"),
    [
        (lambda: rsa.generate_private_key(65537, 2048), False),
        (lambda: ec.generate_private_key(ec.SECP384R1()), False),
        (lambda: ec.generate_private_key(ec.SECP521R1()), True),
    ],
    ids=["RSA", "P-384", "P-521"],
)
def test_the_log_warns_of_a_key_that_many_clients_cannot_connect_to(tmp_path, caplog, key, rare):
    """Their error says only that the connection was closed."""
    ServerCertificate(*self_signed(tmp_path, key()).values())

    assert any("event=certificate_rare" in m for m in caplog.messages) is rare


def broken(ca, other_ca, what):
    """Files of a server, one of them wrong."""
    files = {**ca.issue("server"), "tls_client_ca": ca.file}
    if what == "expired":
        files |= ca.issue("server", expired=True)
    if what == "early":
        files |= ca.issue("server", early=True)
    if what == "other key":
        files["tls_key"] = other_ca.issue("other")["tls_key"]
    if what == "swapped":
        files |= {"tls_cert": files["tls_key"], "tls_key": files["tls_cert"]}
    if what == "encrypted":
        key = serialization.load_pem_private_key(files["tls_key"].read_bytes(), None)
        form, encryption = serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        files["tls_key"].write_bytes(key.private_bytes(serialization.Encoding.PEM, form, encryption))
    if what == "no authority":
        files["tls_client_ca"] = files["tls_key"]
    if what.startswith("missing "):
        files[what.split()[1]] = ca.file.with_name("none.pem")
    if what == "a folder":
        files["tls_cert"] = ca.file.parent
    if what == "a mark":
        files["tls_cert"].write_bytes(codecs.BOM_UTF8 + files["tls_cert"].read_bytes())
    if what == "a curve":
        files |= self_signed(ca.file.parent, ec.generate_private_key(ec.SECP256K1()))
    return files


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "missing tls_cert",
            r"tls_cert: .*none.pem: cannot be read \(No such file or directory\); check path and rights",
        ),
        ("missing tls_key", r"tls_key: .*none.pem: cannot be read \(No such file"),
        ("missing tls_client_ca", r"tls_client_ca: .*none.pem: cannot be read \(No such file"),
        ("a folder", r"tls_cert: .*: cannot be read \(Is a directory\)"),
        ("swapped", r"tls_cert: .*server.key: not a PEM file of certificates"),
        ("a mark", r"tls_cert: .*server.crt: begins with a byte order mark; save it without"),
        ("a curve", r"tls_cert: .*server.crt: gRPC knows no such key as that of CN=server; use RSA, or ECDSA on P-256"),
        ("other key", r"tls_key: .*other.key: is not the key of the first certificate in .*server.crt \(.*CN=server"),
        ("encrypted", r"tls_key: .*server.key: the key is encrypted; remove the password"),
        (
            "expired",
            r"tls_cert: .*server.crt: the certificate of .*CN=server.* expired on 2020-01-01 00:00 UTC; renew it",
        ),
        (
            "early",
            r"tls_cert: .*CN=server.* is not valid before 2120-01-01 00:00:00 UTC; wait until then, or set",
        ),
        ("no authority", r"tls_client_ca: .*server.key: not a PEM file of certificates"),
    ],
)
def test_a_server_with_wrong_files_does_not_start_and_says_which_and_why(start, ca, other_ca, what, message):
    """The option, the file, what is wrong, what to do."""
    with pytest.raises(InvalidInputError, match=message):
        start(StandIn(), **broken(ca, other_ca, what))


def test_a_key_that_is_no_key_is_refused(ca):
    """A certificate in its place."""
    files = ca.issue("server")

    with pytest.raises(InvalidInputError, match=r"tls_key: .*server.crt: not a PEM file of a private key"):
        ServerCertificate(files["tls_cert"], files["tls_cert"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tls_cert": "client.crt", "tls_key": "client.key"}, "tls_cert: given without tls_ca"),
        ({"tls_server_name": "a"}, "tls_server_name: given without tls_ca"),
        ({"tls_ca": "ca.crt", "tls_cert": "client.crt"}, "tls_cert: given without tls_key"),
        ({"tls_ca": "ca.crt", "tls_key": "client.key"}, "tls_key: given without tls_cert"),
        ({"tls_ca": "none"}, r"tls_ca: .*none: cannot be read \(No such file"),
        ({"tls_ca": "client.key"}, "tls_ca: .*client.key: not a PEM file of certificates"),
        (
            {"tls_ca": "ca.crt", "tls_cert": "client.key", "tls_key": "client.key"},
            "tls_cert: .*client.key: not a PEM fi",
        ),
        (
            {"tls_ca": "ca.crt", "tls_cert": "client.crt", "tls_key": "server.key"},
            "tls_key: .*server.key: not the private key of tls_cert .*KEY_VALUES_MISMATCH",
        ),
    ],
)
def test_a_client_refuses_wrong_files_before_it_connects(tmp_path, server_files, client_files, options, message):
    """gRPC itself would only say that it cannot connect."""
    paths = {k: v if k == "tls_server_name" else tmp_path / v for k, v in options.items()}

    with pytest.raises(InvalidInputError, match=message):
        Client("localhost:1", **paths)


def test_health_watch_works_over_tls(start, ca, server_files):
    """Probes and balancers that are given the authority."""
    running = start(StandIn(), **server_files)
    credentials = grpc.ssl_channel_credentials(ca.file.read_bytes())

    with grpc.secure_channel(running.target, credentials) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""), timeout=20)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING


def test_the_log_tells_the_expiry_at_the_start(ca, caplog):
    """As an ISO date, so that it can be searched for."""
    caplog.set_level(logging.INFO, "softkin.server")

    certificate = ServerCertificate(*ca.issue("server").values())

    [line] = caplog.messages
    date = line.split("expires=")[1].split()[0]
    assert datetime.fromisoformat(date).timestamp() == certificate.expires()
