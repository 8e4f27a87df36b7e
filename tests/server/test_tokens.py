"""Bearer tokens: who gets in, what a refusal says, and how tokens are exchanged."""

from __future__ import annotations

import hmac
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from authority import Authority
from softkin.client import Client
from softkin.converters import array_to_tensor
from softkin.errors import AuthenticationError, InvalidInputError
from softkin.inference import grpc_service_pb2 as oip
from softkin.tokens import REFUSAL, TokenFile, TokenInterceptor
from softkin.v1 import admin_pb2
from softkin.v1 import outlier_pb2 as pb
from standin import StandIn

SERVICE = "softkin.v1.OutlierService"
FIRST, SECOND, WRONG = "first-token-0123456789", "second.token~0123456789+/=", "first-token-0123456780"


@pytest.fixture
def file(tmp_path):
    """A file with two tokens."""
    path = tmp_path / "tokens"
    path.write_text(f"# of the nightly job\n{FIRST}\n\n  {SECOND}  \n")
    return path


@pytest.fixture
def guarded(start, file):
    """A server that asks for them."""
    return start(StandIn(), token_file=file, max_rows=8)


def score(running, token):
    """The answer to one call of softkin's own client: a number of rows, or the error."""
    with running.client(token=token) as client:
        try:
            return len(client.score(np.zeros((3, 2, 3), np.float32)))
        except AuthenticationError as e:
            return e


def call(channel, method, metadata):
    """The status of a method, called with an empty message of the right kind."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    empty = method.input_type._concrete_class().SerializeToString()
    if method.client_streaming:
        answer = channel.stream_stream(path)(iter([empty]), timeout=20, metadata=metadata)
    elif method.server_streaming:
        answer = channel.unary_stream(path)(empty, timeout=20, metadata=metadata)
    else:
        answer = channel.unary_unary(path).future(empty, timeout=20, metadata=metadata)
    if method.server_streaming:
        with suppress(grpc.RpcError):
            list(answer)
    return answer.code(), answer.details()


METHODS = [
    *pb.DESCRIPTOR.services_by_name["OutlierService"].methods,
    *oip.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods,
]
ADMIN_METHODS = list(admin_pb2.DESCRIPTOR.services_by_name["DetectorAdminService"].methods)


def test_every_token_of_the_file_lets_in_and_no_other(guarded):
    """The first, the second; a wrong one and none are refused with the same words."""
    found = [score(guarded, token) for token in (FIRST, SECOND, WRONG, None)]

    assert found[:2] == [3, 3]
    remedy = "give one that the server takes (token, or --token-file)"
    assert [str(e) for e in found[2:]] == [f"{guarded.target}: {REFUSAL}; {remedy}"] * 2


REFUSED = {
    "none": (),
    "wrong": (("authorization", f"Bearer {WRONG}"),),
    "no scheme": (("authorization", FIRST),),
    "other scheme": (("authorization", f"Basic {FIRST}"),),
    "empty": (("authorization", "Bearer "),),
    "two words": (("authorization", f"Bearer {FIRST} {FIRST}"),),
    "two tokens": (("authorization", f"Bearer {WRONG}"), ("authorization", f"Bearer {FIRST}")),
    "other key": (("x-authorization", f"Bearer {FIRST}"),),
}


@pytest.fixture
def channels(start, file):
    """Every method, with a channel to where it answers: the gRPC port, or the admin port."""
    running = start(StandIn(), token_file=file, admin_port=0)
    with grpc.insecure_channel(f"127.0.0.1:{running.server.admin_port}") as admin:
        yield [*((m, running.channel) for m in METHODS), *((m, admin) for m in ADMIN_METHODS)]


def test_every_method_of_every_service_is_refused_without_a_token(channels):
    """Unary or streaming, one fixed text, which shows nothing of what was sent."""
    found = {
        (method.full_name, case): call(channel, method, metadata)
        for method, channel in channels
        for case, metadata in REFUSED.items()
    }

    assert found == dict.fromkeys(found, (grpc.StatusCode.UNAUTHENTICATED, REFUSAL))
    assert len(found) == len(channels) * len(REFUSED)


def test_every_method_of_every_service_answers_with_a_token(channels):
    """Whatever it says to an empty message, it is not that nobody may ask; the scheme is read in any case."""
    metadata = [(("authorization", f"{scheme} {SECOND}"),) for scheme in ("Bearer", "bearer", "BEARER")]

    found = {method.full_name: {call(channel, method, md)[0] for md in metadata} for method, channel in channels}

    unexpected = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNKNOWN}
    assert not any(codes & unexpected for codes in found.values()), found


def test_there_are_unary_and_streaming_methods():
    """Otherwise the two tests above would prove less than they say."""
    assert {m.client_streaming for m in METHODS} == {True, False}


def test_health_and_reflection_answer_without_a_token(guarded):
    """Check, Watch and the list of services: probes and tools have none."""
    request = health_pb2.HealthCheckRequest(service=SERVICE)

    assert guarded.health.Check(request, timeout=20).status == health_pb2.HealthCheckResponse.SERVING
    assert next(guarded.health.Watch(request, timeout=20)).status == health_pb2.HealthCheckResponse.SERVING
    assert SERVICE in ProtoReflectionDescriptorDatabase(guarded.channel).get_services()
    with guarded.client() as client:
        assert client.healthy()


def test_open_health_watches_hold_no_thread(start, file):
    """More of them than there are threads, and a call is still answered."""
    running = start(StandIn(), token_file=file, max_pending_requests=1, max_streams=0)
    watches = [running.health.Watch(health_pb2.HealthCheckRequest(service=""), timeout=60) for _ in range(40)]
    assert [next(w).status for w in watches] == [health_pb2.HealthCheckResponse.SERVING] * 40

    assert score(running, FIRST) == 3


def test_reflection_can_be_switched_off(start):
    """The rest goes on."""
    running = start(StandIn(), reflection=False)

    with pytest.raises(grpc.RpcError) as e:
        ProtoReflectionDescriptorDatabase(running.channel).get_services()

    assert e.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert len(running.score(np.zeros((1, 2, 3), np.float32)).p_value) == 1


def test_refusals_are_counted_and_the_detector_is_not_asked(start, file):
    """Calls started and handled agree, whoever called."""
    detector = StandIn()
    running = start(detector, token_file=file)
    labels = {"grpc_type": "UNARY", "grpc_service": SERVICE, "grpc_method": "Score"}
    request = pb.ScoreRequest(inputs=array_to_tensor(np.zeros((1, 2, 3), np.float32)))

    for _ in range(3):
        with pytest.raises(grpc.RpcError):
            running.stub.Score(request, timeout=20)

    name = "grpc_server_handled_total"
    running.until(lambda: running.sample(name, **labels, grpc_code="UNAUTHENTICATED") == 3)
    assert running.sample("grpc_server_started_total", **labels) == 3
    assert running.sample("softkin_rejected_total", reason="unauthenticated") == 3
    assert detector.rows_scored == 0


def test_what_a_stranger_sends_is_not_parsed(guarded):
    """Bytes that are no message are refused for the missing token, not for what they are."""
    with pytest.raises(grpc.RpcError) as e:
        guarded.channel.unary_unary(f"/{SERVICE}/Score")(b"\xff\xff\xff no message", timeout=20)

    assert e.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_tokens_are_exchanged_without_a_restart(guarded, file):
    """Old and new side by side, then the new one alone."""
    file.write_text(f"{FIRST}\n{WRONG}\n")
    guarded.until(lambda: score(guarded, WRONG) == 3)
    assert score(guarded, FIRST) == 3

    file.write_text(f"{WRONG}\n")

    guarded.until(lambda: isinstance(score(guarded, FIRST), AuthenticationError))
    assert score(guarded, WRONG) == 3


@pytest.mark.parametrize("content", [None, "", "# none\n", "two words\n", b"\xff\xfe"])
def test_a_file_that_becomes_wrong_keeps_the_tokens_and_the_log_says_so_once(file, caplog, content):
    """Half-written or removed: whoever could call can call, and nobody else."""
    now = [0.0]
    tokens = TokenFile(file, clock=lambda: now[0])
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    found = []
    for now[0] in (2.0, 4.0, 6.0):
        found += [tokens.accepts(FIRST), tokens.accepts(WRONG)]

    assert found == [True, False] * 3
    [warning] = caplog.messages
    assert warning.startswith("event=tokens_kept tokens=2 reason=")
    assert FIRST not in caplog.text


def test_the_file_is_read_once_a_second_at_most(file, caplog):
    """And then by the next call; the log says when its tokens are others, and no more."""
    caplog.set_level(logging.INFO)
    now = [5.0]
    tokens = TokenFile(file, clock=lambda: now[0])
    file.write_text(WRONG)

    found = []
    for now[0] in (5.5, 5.99, 6.0, 7.0):
        found.append((tokens.accepts(FIRST), tokens.accepts(WRONG), len(caplog.messages)))

    assert found == [(True, False, 0), (True, False, 0), (False, True, 1), (False, True, 1)]
    assert caplog.messages == [f"event=tokens_changed file={file} tokens=1"]


@pytest.mark.parametrize("token", [FIRST, SECOND, WRONG, "", "short", "\u00e9"])
def test_a_token_is_compared_with_all_in_constant_time(file, monkeypatch, token):
    """Each of the file's, whichever is right, and always as many bytes: the time of an answer tells nothing."""
    seen = []
    compare = hmac.compare_digest
    tokens = TokenFile(file)
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: seen.append((len(a), len(b), b)) or compare(a, b))

    accepted = tokens.accepts(token)

    assert accepted is (token in (FIRST, SECOND))
    assert [s[:2] for s in seen] == [(32, 32)] * 2
    assert len({s[2] for s in seen}) == 2


@pytest.mark.parametrize(
    ("make", "streams"),
    [
        (grpc.unary_unary_rpc_method_handler, False),
        (grpc.unary_stream_rpc_method_handler, True),
        (grpc.stream_unary_rpc_method_handler, False),
        (grpc.stream_stream_rpc_method_handler, True),
    ],
)
def test_a_refusal_answers_as_the_method_would_and_takes_any_number_of_messages(file, make, streams):
    """Also for kinds that no service of ours has yet."""
    handler = make(lambda request, context: None)
    interceptor = TokenInterceptor(TokenFile(file))
    details = SimpleNamespace(method="/inference.GRPCInferenceService/ModelInfer", invocation_metadata=())

    refusing = interceptor.intercept_service(lambda _: handler, details)

    assert (refusing.request_streaming, refusing.response_streaming) == (True, streams)
    [behavior] = filter(None, (refusing.stream_unary, refusing.stream_stream))
    with pytest.raises(AuthenticationError):
        behavior(None, None)


@pytest.mark.parametrize("method", ["/grpc.health.v1.Health/Watch", "/grpc.reflection.v1.ServerReflection/Info"])
def test_what_is_open_keeps_its_own_handler(file, method):
    """Not even wrapped: a wrapper would hide the mark that lets Watch run without a thread."""
    handler = object()
    details = SimpleNamespace(method=method, invocation_metadata=())

    assert TokenInterceptor(TokenFile(file)).intercept_service(lambda _: handler, details) is handler


def test_a_method_that_does_not_exist_stays_unknown(guarded):
    """With or without a token."""
    for metadata in ((), (("authorization", f"Bearer {FIRST}"),)):
        with pytest.raises(grpc.RpcError) as e:
            guarded.channel.unary_unary("/no.such.Service/Method")(b"", timeout=20, metadata=metadata)
        assert e.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"token_file: .*tokens: cannot be read \(No such file or directory\); check path and rights"),
        ("", "token_file: .*tokens: has no token; write at least one, one a line"),
        ("# a comment\n\n", "token_file: .*tokens: has no token"),
        ("good\nbad token\n", "token_file: .*tokens: line 2 is no token; allowed: letters, digits and any of"),
        ("caf\u00e9\n", "token_file: .*tokens: line 1 is no token"),
        (b"\xff\n", "token_file: .*tokens: not a text file"),
    ],
)
def test_a_server_with_a_wrong_token_file_does_not_start(start, file, content, message):
    """The message names the line and never shows it."""
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(InvalidInputError, match=message) as e:
        start(StandIn(), token_file=file)

    assert "bad" not in str(e.value)
    assert "caf" not in str(e.value)


def test_tokens_over_plaintext_beyond_this_machine_are_warned_of(start, file, tmp_path, caplog):
    """Not on loopback, and not with TLS."""
    certificate = Authority(tmp_path).issue("server")

    start(StandIn(), token_file=file, host="127.0.0.1")
    start(StandIn(), token_file=file, host="0.0.0.0", **certificate)
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
    start(StandIn(), token_file=file, admin_port=0, admin_host="0.0.0.0")
    assert [r.getMessage().split()[1] for r in caplog.records if r.levelno == logging.WARNING] == ["host=0.0.0.0"]
    caplog.clear()
    start(StandIn(), token_file=file, host="0.0.0.0", admin_port=0, admin_host="0.0.0.0")
    [warning] = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warning.startswith("event=tokens_in_plaintext host=0.0.0.0")
    assert "set tls_cert and tls_key" in warning


def test_the_log_says_what_guards_the_port(start, file, tmp_path, caplog):
    """One line at the start, whatever is on."""
    caplog.set_level(logging.INFO, "softkin.server")
    ca = Authority(tmp_path)
    certificate = ca.issue("server")

    start(StandIn())
    start(StandIn(), token_file=file, reflection=False, **certificate)
    start(StandIn(), tls_client_ca=ca.file, **certificate)

    assert [m for m in caplog.messages if m.startswith("event=security ")] == [
        "event=security tls=off tokens=off reflection=on",
        "event=security tls=on tokens=on reflection=off",
        "event=security tls=mutual tokens=off reflection=on",
    ]


def test_a_token_goes_through_tls(start, file, tmp_path):
    """Both together, as they are meant to be used."""
    ca = Authority(tmp_path)
    running = start(StandIn(), token_file=file, **ca.issue("server"))

    with running.client(tls_ca=ca.file, token=SECOND) as client:
        x = np.zeros((1, 2, 3), np.float32)
        assert [len(client.score(x)), *map(len, client.score_stream([x]))] == [1, 1]
    with running.client(tls_ca=ca.file) as client, pytest.raises(AuthenticationError, match="needs a valid token"):
        client.detector_info()


@pytest.mark.parametrize("target", ["example.org:1", "10.0.0.1:1", "dns:///softkin:1", "ipv4:127.0.0.1:1,10.0.0.1:1"])
def test_a_client_never_sends_a_token_in_plaintext_beyond_this_machine(target):
    """Refused before anything connects; the message does not show the token."""
    with pytest.raises(InvalidInputError, match=r"token: would travel to .* in plaintext, .*; give tls_ca") as e:
        Client(target, token=FIRST)

    assert FIRST not in str(e.value)


@pytest.mark.parametrize("token", ["", "two words", "line\n", "caf\u00e9"])
def test_a_client_refuses_a_malformed_token_without_showing_it(token):
    """gRPC would fail every call instead."""
    with pytest.raises(InvalidInputError, match="token: has characters that a token may not have"):
        Client("localhost:1", token=token)


def test_permission_denied_is_an_authentication_error_too():
    """A server of ours never says it; a proxy in front may."""

    class Proxy(grpc.GenericRpcHandler):
        def service(self, details):
            return grpc.unary_unary_rpc_method_handler(
                lambda request, context: context.abort(grpc.StatusCode.PERMISSION_DENIED, "not you")
            )

    proxy = grpc.server(ThreadPoolExecutor(1), handlers=[Proxy()])
    port = proxy.add_insecure_port("127.0.0.1:0")
    proxy.start()

    with Client(f"127.0.0.1:{port}") as client, pytest.raises(AuthenticationError, match=f"127.0.0.1:{port}: not you"):
        client.detector_info()
    proxy.stop(None).wait()


def test_a_token_that_is_no_text_is_refused_with_its_type():
    """As read from a file in binary; what it is stays out of the message."""
    with pytest.raises(InvalidInputError, match=r"^token: is of type bytes; must be text$"):
        Client("localhost:1", token=FIRST.encode())
