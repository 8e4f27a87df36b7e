"""The client gives the numbers that scoring in process gives, whatever the limits, and softkin's own errors."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from softkin import AsyncClient
from softkin.certificate import certify
from softkin.converters import proto_to_limits
from softkin.errors import InvalidInputError, NotFoundError, OverloadedError, SoftkinError, UnavailableError
from softkin.joining import join
from softkin.v1 import outlier_pb2 as pb
from softkin.verdicts import GUARANTEES
from standin import StandIn
from unfit_rows import UNFIT_ROWS

ARRAYS = ("outlier_score", "p_value", "is_outlier", "predicted_class", "credibility", "confidence", "class_p_values")
NEIGHBOR_ARRAYS = ("ids", "labels", "distances", "shares")


def assert_same(a, b):
    """Every array equal in dtype, shape and bits."""
    for name in ARRAYS:
        x, y = getattr(a, name), getattr(b, name)
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()), name
    assert a.budget == b.budget
    assert (a.neighbors is None) == (b.neighbors is None)
    if a.neighbors is not None:
        assert a.neighbors.layers == b.neighbors.layers
        for name in NEIGHBOR_ARRAYS:
            x, y = getattr(a.neighbors, name), getattr(b.neighbors, name)
            assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()), name
    assert (a.parts is None) == (b.parts is None) == (a.neighbors is None)
    if a.parts is not None:
        assert (a.parts.names, a.parts.values.tobytes()) == (b.parts.names, b.parts.values.tobytes())


@pytest.mark.parametrize("num_neighbors", [0, 3])
@pytest.mark.parametrize("n", [1, 8, 9, 29])
def test_scores_over_the_wire_are_those_in_process_bit_by_bit(server, rows, n, num_neighbors):
    """Also when the array is split into several requests of at most max_rows = 8."""
    x = rows(n) / 7

    with server.client() as client:
        scores = client.score(x, alpha=0.1, num_neighbors=num_neighbors)

    assert_same(scores, StandIn().score(x, alpha=0.1, num_neighbors=num_neighbors))
    assert server.sample("softkin_request_rows_count") == -(-n // 8)


@pytest.mark.parametrize("smoothing_seed", [None, 0, 2**64 - 1], ids=["plain", "seed 0", "largest seed"])
@pytest.mark.parametrize("guarantee", GUARANTEES)
@pytest.mark.parametrize("n", [5, 29])
def test_every_guarantee_over_the_wire_is_the_one_in_process(server, rows, n, guarantee, smoothing_seed):
    """Verdicts, budget and p-values, one request or several: a selection is made among all rows of the array."""
    options = {"alpha": 0.1, "guarantee": guarantee, "confidence": 0.75, "smoothing_seed": smoothing_seed}
    x = rows(n) / 7

    with server.client() as client:
        scores = client.score(x, **options)

    assert_same(scores, StandIn().score(x, **options))
    assert scores.budget.guarantee == guarantee
    assert scores.budget.smoothed == (smoothing_seed is not None)


def test_a_selection_spans_all_requests_for_one_array(server):
    """A strange row among ordinary ones cannot be flagged in its own request, but among all rows of the array."""
    x = np.zeros((32, 2, 3), np.float32)
    x[0] = x[8:24] = 50  # p = 0.01

    with server.client() as client:
        alone = client.score(x[:8], guarantee="false_discovery_rate")
        scores = client.score(x, guarantee="false_discovery_rate", num_neighbors=2)

    assert not alone.is_outlier.any()
    assert (alone.budget.p_value_threshold, alone.budget.fewest_selectable) == (0, 2)
    assert scores.is_outlier.tolist() == [True] + [False] * 7 + [True] * 16 + [False] * 8
    assert (scores.budget.p_value_threshold, scores.budget.fewest_selectable) == (0.01, 7)
    assert_same(scores, StandIn().score(x, guarantee="false_discovery_rate", num_neighbors=2))


def test_a_selection_that_is_the_servers_default_spans_all_requests_too(start):
    """What the answers say is what counts, not what the caller asked for."""
    x = np.zeros((32, 2, 3), np.float32)
    x[0] = x[8:24] = 50
    running = start(StandIn(), max_rows=8, guarantee="false_discovery_rate")

    with running.client() as client:
        scores = client.score(x)

    assert_same(scores, StandIn().score(x, guarantee="false_discovery_rate"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guarantee": "most"}, "guarantee: got 'most'; allowed: marginal, certified, class_conditional, false_disc"),
        ({"smoothing_seed": -1}, r"smoothing_seed: got -1; must lie in \[0, 2\^64\)"),
        ({"smoothing_seed": 2**64}, r"smoothing_seed: got 18446744073709551616; must lie in \[0, 2\^64\)"),
        ({"num_neighbors": -1}, "num_neighbors: got -1; must be 0 or more"),
        ({"num_neighbors": "1"}, "num_neighbors: got '1'; must be an integer, 0 or more"),
        ({"alpha": "0.1"}, r"alpha: got '0\.1'; must be a number strictly in \(0, 1\)"),
        ({"confidence": "0.9"}, r"confidence: got '0\.9'; must be a number strictly in \(0, 1\)"),
    ],
)
def test_what_cannot_travel_is_refused_before_sending(shared_server, rows, options, message):
    """With the words of scoring in process."""
    with shared_server.client() as client, pytest.raises(InvalidInputError, match=message):
        client.score(rows(1), **options)


@pytest.mark.parametrize(("make", "message"), UNFIT_ROWS)
def test_what_makes_no_whole_array_is_refused_as_in_process(shared_server, rows, make, message):
    """By every way to score, before anything is sent."""

    async def score():
        async with AsyncClient(shared_server.target) as client:
            await client.score(make(rows(3)))

    with shared_server.client() as client:
        with pytest.raises(InvalidInputError, match=message):
            client.score(make(rows(3)))
        with pytest.raises(InvalidInputError, match=message):
            list(client.score_stream([make(rows(3))]))
    with pytest.raises(InvalidInputError, match=message):
        asyncio.run(score())


def test_large_rows_are_split_by_bytes(start, rows):
    """No request exceeds max_message_bytes, and all rows come back in order."""
    x = rows(500)
    running = start(StandIn(), max_message_bytes=1024)

    with running.client(detector="standin", version="1") as client:
        scores = client.score(x)

    assert_same(scores, StandIn().score(x))
    assert running.sample("softkin_request_rows_count") >= 500 * 24 / 1024


def test_a_row_larger_than_a_message_is_refused_with_the_limit(start):
    """No split can help, so the client says which limit to raise."""
    running = start(StandIn(), max_message_bytes=1024)

    with running.client() as client, pytest.raises(InvalidInputError, match=r"one row has 1200 bytes.*= 1024; raise"):
        client.score(np.zeros((2, 300), np.float32))


def test_stage_seconds_cover_the_whole_path_and_add_up_over_requests(server, rows):
    """decode, queue and encode join what the detector reports; the stand-in says 0.25 s per batch."""
    with server.client() as client:
        seconds = client.score(rows(16)).stage_seconds

    assert set(seconds) == {"decode", "queue", "infer", "calibrate", "encode"}
    assert seconds["infer"] == 0.5
    assert all(0 < s < 60 for s in seconds.values())


def test_sixteen_threads_each_get_their_own_rows(start, rows):
    """Results never cross between concurrent requests on one client."""
    running = start(StandIn(), workers=4)

    with running.client() as client, ThreadPoolExecutor(16) as pool:
        inputs = [rows(1 + i % 5, offset=1000 * i) for i in range(160)]
        answers = list(pool.map(client.score, inputs))

    for x, scores in zip(inputs, answers, strict=True):
        assert_same(scores, StandIn().score(x))


def test_detector_info_says_what_the_detector_takes_and_what_stands_behind_it(start):
    """Everything of the manifest that a caller needs; default_alpha is the one this server uses."""
    with start(StandIn(), alpha=0.2).client() as client:
        info = client.detector_info()

    expected = StandIn()
    assert (info.name, info.version, info.digest, info.device) == ("standin", "1", expected.digest, "cpu")
    assert (info.input_dtype, info.input_shape, info.classes) == ("float32", (2, 3), expected.manifest.classes)
    assert [(x.name, x.dim, x.metric, x.temperature) for x in info.layers] == [
        ("conv", 4, "cosine", 0.1),
        ("dense", 2, "squared_euclidean", 2.5),
    ]
    assert (info.default_alpha, info.calibration_size, info.smallest_p_value, info.bank_size) == (0.2, 99, 0.01, 7)


def test_the_client_lists_what_is_loaded_whichever_one_it_scores_with(start):
    """In order of name, then version, each as `detector_info` describes it."""
    running = start(StandIn(version="2"), StandIn(), StandIn(name="a"))

    with running.client(detector="a") as client:
        found, own = client.detectors(), client.detector_info()

    assert [(d.name, d.version) for d in found] == [("a", "1"), ("standin", "1"), ("standin", "2")]
    assert found[0] == own


def test_the_servers_alpha_holds_when_the_request_names_none(start, rows):
    """Request > server's --alpha > bundle's default."""
    with start(StandIn(), alpha=0.2).client() as client:
        alphas = client.score(rows(1)).budget.alpha, client.score(rows(1), alpha=0.3).budget.alpha

    assert alphas == (0.2, 0.3)


def test_the_servers_guarantee_and_confidence_hold_when_the_request_names_none(start, rows):
    """And GetDetector says so: the certificate is that of the server's own alpha and confidence."""
    running = start(StandIn(), alpha=0.2, guarantee="certified", confidence=0.75)

    with running.client() as client:
        info = client.detector_info()
        default, own = client.score(rows(3)), client.score(rows(3), guarantee="marginal", confidence=0.9)

    assert (info.default_guarantee, info.default_alpha) == ("certified", 0.2)
    assert info.certificate == certify(0.2, 99, 0.75)
    assert info.predicted_class_rows == (50, 30, 19)
    assert_same(default, StandIn().score(rows(3), alpha=0.2, guarantee="certified", confidence=0.75))
    assert_same(own, StandIn().score(rows(3), alpha=0.2, guarantee="marginal", confidence=0.9))


def test_a_client_reaches_the_detector_it_names_and_the_last_loaded_version_by_default(start, rows):
    """Several detectors and versions live side by side."""
    running = start(StandIn("a", "1"), StandIn("a", "3"), StandIn("a", "2"), StandIn("b", "1"))

    found = []
    for name, version in [("a", ""), ("a", "1"), ("b", "")]:
        with running.client(detector=name, version=version) as client:
            budget = client.score(rows(1)).budget
            found.append((budget.detector, budget.version))

    assert found == [("a", "2"), ("a", "1"), ("b", "1")]


def test_refusals_come_back_as_the_errors_of_scoring_in_process(shared_server, rows):
    """The type, the field and the message of the server's own error."""
    in_process = pytest.raises(InvalidInputError)
    with in_process as local:
        StandIn().score(rows(1).astype(np.uint8))

    with shared_server.client() as client, pytest.raises(InvalidInputError) as remote:
        client.score(rows(1).astype(np.uint8))

    assert (remote.value.field, remote.value.message) == (local.value.field, local.value.message)


def test_an_array_without_rows_is_refused_in_the_servers_words(shared_server):
    """Nothing to split is still sent."""
    with shared_server.client() as client, pytest.raises(InvalidInputError, match="there are no rows"):
        client.score(np.zeros((0, 2, 3), np.float32))


@pytest.mark.parametrize("dtype", [np.float16, np.bool_, np.complex64, np.str_, np.object_])
@pytest.mark.parametrize("shape", [(1, 2, 3), (1,)])  # rows of the last are no arrays
def test_a_dtype_that_cannot_travel_is_refused_before_sending(shared_server, dtype, shape):
    """The message lists the dtypes that can."""
    with (
        shared_server.client() as client,
        pytest.raises(InvalidInputError, match="cannot travel; convert to one of: float32"),
    ):
        client.score(np.zeros(shape, dtype))


def test_an_unknown_detector_is_a_not_found_error(shared_server, rows):
    """NOT_FOUND -> NotFoundError with the server's list."""
    with (
        shared_server.client(detector="nope") as client,
        pytest.raises(NotFoundError, match="loaded: standin version 1"),
    ):
        client.score(rows(1))


def test_a_fault_of_the_server_is_a_plain_softkin_error(start, rows):
    """INTERNAL -> SoftkinError, with the log id to quote."""
    with start(StandIn(failure=ValueError("secret"))).client() as client, pytest.raises(SoftkinError) as e:
        client.score(rows(1))

    assert type(e.value) is SoftkinError
    assert "INTERNAL: internal error; log id" in str(e.value)


def test_no_server_is_an_unavailable_error_and_not_healthy(start, rows):
    """UNAVAILABLE -> UnavailableError that names the target."""
    running = start(StandIn())
    running.server.stop_now()

    with running.client(timeout_seconds=5) as client:
        assert not client.healthy()
        with pytest.raises(UnavailableError, match=running.target):
            client.score(rows(1))


def test_unavailable_is_retried_and_nothing_else(start, rows):
    """A server that is starting gets 4 attempts, also for a message over gRPC's default retry buffer of 256 KiB."""
    running = start(StandIn(), ready=False)
    method = {"grpc_type": "UNARY", "grpc_service": "softkin.v1.OutlierService", "grpc_method": "Score"}
    with running.client() as client:
        # Given here, because asking a server that is not ready would spend the retries on GetDetector.
        client._limits = replace(proto_to_limits(pb.Limits()), max_rows=20_000, max_message_bytes=1 << 20)
        large = np.zeros((20_000, 2, 3), np.float32)
        with pytest.raises(UnavailableError, match="the server is starting"):
            client.score(large)

    # The last call is counted after its answer has been sent; no fifth can follow, because the client has given up.
    running.until(lambda: running.sample("grpc_server_handled_total", grpc_code="UNAVAILABLE", **method) == 4)
    assert running.sample("grpc_server_started_total", **method) == 4


def test_an_overload_is_told_apart_and_says_how_long_to_wait(start, rows, gate):
    """RESOURCE_EXHAUSTED -> OverloadedError with the server's delay; not retried by the client."""
    detector = StandIn(gate=gate)
    running = start(detector, max_rows=4, max_pending_rows=4)
    with running.client() as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.score, rows(4))
        assert detector.entered.acquire(timeout=20)

        with pytest.raises(OverloadedError, match="4 rows are pending, 1 more would exceed max_pending_rows = 4") as e:
            client.score(rows(1))
        gate.set()

        assert e.value.retry_after_seconds == 0.5
        assert len(first.result(timeout=20)) == 4
    assert running.sample("softkin_rejected_total", reason="queue_full") == 1


def test_answers_of_one_detector_on_two_devices_are_joined(rows):
    """Calls take turns among the servers of a target, and one of them may have fallen back to the CPU."""
    detector, x, parts = StandIn(), rows(5), []
    whole = detector.score(x)
    for device, part in (("cuda", x[:2]), ("cpu", x[2:4]), ("cuda", x[4:])):
        scores = detector.score(part)
        parts.append(replace(scores, budget=replace(scores.budget, device=device)))

    found = join(parts)

    assert found.p_value.tolist() == whole.p_value.tolist()
    assert found.budget == replace(whole.budget, device="cuda,cpu")


def test_answers_from_two_detectors_are_never_joined(start, rows):
    """When the default version changes between two requests for one array, the client says so instead of mixing."""
    parts = [StandIn(version=v).score(rows(2)) for v in ("1", "2")]

    with pytest.raises(UnavailableError, match="replaced between two requests"):
        join(parts)


def test_a_label_names_the_version_in_every_call(start, rows):
    """Scores, description and drift are all of the one that carries it, and not of the one that serves by default."""
    running = start(StandIn(), StandIn(version="2"), admin_port=0)
    with running.admin() as admin:
        admin.set_label("standin", "1", "stable")
        admin.set_label("standin", "2", "canary")

    with running.client(label="canary") as client:
        found = client.score(rows(3)).budget.version, client.detector_info().version, client.drift().version

    assert found == ("2", "2", "2")
