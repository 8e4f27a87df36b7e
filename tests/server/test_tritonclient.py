"""An unmodified tritonclient gets the numbers that softkin's own client gets."""

from __future__ import annotations

import json

import numpy as np

from softkin import Detector, __version__
from softkin.converters import array_to_tensor
from softkin.v1 import outlier_pb2 as pb
from softkin.verdicts import GUARANTEES
from standin import StandIn
from triton_caller import Triton

ARRAYS = ("outlier_score", "p_value", "is_outlier", "predicted_class", "credibility", "confidence", "class_p_values")
NEIGHBOR_ARRAYS = ("ids", "labels", "distances", "shares")


def assert_same(result, scores):
    """Every array equal in dtype, shape and bits; and all that stands behind the verdicts."""
    expected = {name: getattr(scores, name) for name in ARRAYS}
    budget = {k: v for k, v in vars(scores.budget).items() if v is not None}
    if scores.neighbors is not None:
        expected |= {f"neighbors_{name}": getattr(scores.neighbors, name) for name in NEIGHBOR_ARRAYS}
        expected["parts_values"] = scores.parts.values
        budget |= {
            "neighbors_layers": json.dumps(scores.neighbors.layers),
            "parts_names": json.dumps(scores.parts.names),
        }
    found = result["outputs"]
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name
    assert result["parameters"] == budget


def test_every_way_to_infer_gives_the_numbers_of_our_client(server, rows):
    """Synchronous, with a callback's future, with asyncio; compressed; the request's id comes back."""
    x = rows(5)
    ways = [{"how": "sync"}, {"how": "async"}, {"how": "aio"}, {"compression_algorithm": "gzip"}]

    results = Triton(server.target)(*({"rows": x, "request_id": "7", **way} for way in ways))

    with server.client() as client:
        scores = client.score(x)
    for result in results:
        assert_same(result, scores)
        assert result["response"] == ["standin", "1", "7"]


OPTIONS = {
    **{g: {"guarantee": g, "alpha": 0.25} for g in GUARANTEES},
    "alpha as text": {"alpha": "0.3"},
    "confidence": {"confidence": 0.5},
    "smoothed": {"smoothing_seed": 12},
    "evidence": {"num_neighbors": 3},
}


def test_every_option_means_what_it_means_to_our_client(server, rows):
    """The same arrays, and the same words about what they rest on."""
    x = rows(8, offset=-20)

    results = Triton(server.target)(*({"rows": x, "parameters": options} for options in OPTIONS.values()))

    with server.client() as client:
        for options, result in zip(OPTIONS.values(), results, strict=True):
            alpha = {"alpha": float(options["alpha"])} if "alpha" in options else {}
            assert_same(result, client.score(x, **{**options, **alpha}))


def test_a_real_detector_gives_the_numbers_that_it_gives_in_process(start, tiny):
    """Of a bundle, with evidence."""
    detector = Detector.load(tiny.path, device="cpu", threads=1)
    running, x = start(detector), np.concatenate([tiny.inliers[:30], tiny.outliers[:30]])
    m = detector.manifest

    [result] = Triton(running.target)(
        {"rows": x, "model": m.name, "input": m.input_name, "parameters": {"num_neighbors": 3}}
    )

    assert_same(result, detector.score(x, num_neighbors=3))


def test_both_clients_live_in_one_process(server, rows):
    """Whichever comes first: softkin's client does not bring the protocol's messages."""
    x = rows(4)

    ours, theirs, again = Triton(server.target)({"softkin": x}, {"rows": x}, {"softkin": x})

    expected = StandIn().score(x).p_value.tobytes()
    assert [r["outputs"]["p_value"].tobytes() for r in (ours, theirs, again)] == [expected] * 3


def test_only_the_outputs_asked_for_come_in_the_order_asked_for(server, rows):
    """Those about neighbours too."""
    names = ["is_outlier", "neighbors_ids", "p_value"]

    [result] = Triton(server.target)(
        {"rows": rows(2), "outputs": [[name] for name in names], "parameters": {"num_neighbors": 1}}
    )

    assert list(result["outputs"]) == names


def test_a_version_is_chosen_by_number_or_by_label(start, rows):
    """A version wins over a label that is called like it; neither: the version that serves by default."""
    running = start(StandIn(version="1"), StandIn(version="2"), StandIn(version="3"))
    for label, version in {"canary": "1", "stable": "2", "1": "3"}.items():
        running.server._registry.set_label("standin", version, label)
    asked = ["", "1", "2", "3", "canary", "stable"]

    results = Triton(running.target)(*({"rows": rows(1), "model_version": v} for v in asked))

    assert [r["response"][1] for r in results] == ["2", "1", "2", "3", "1", "2"]


def test_what_tritonclient_adds_for_other_servers_is_refused_by_name(server, rows):
    """With what to do instead; nothing that a caller asks for is ignored."""
    asked = [
        {"timeout": 1000},
        {"priority": 1},
        {"sequence_id": 5, "sequence_start": True},
        {"outputs": [["p_value", 3]]},
        {"parameters": {"threshold": 1}},
    ]

    results = Triton(server.target)(*({"rows": rows(1), **options} for options in asked))

    known = "allowed: alpha, guarantee, confidence, smoothing_seed, num_neighbors"
    assert [r["error"] for r in results] == [
        [
            "StatusCode.INVALID_ARGUMENT",
            f"parameters: got 'timeout'; {known}; give the call a deadline instead (client_timeout in tritonclient)",
        ],
        ["StatusCode.INVALID_ARGUMENT", f"parameters: got 'priority'; {known}; all requests are equal"],
        ["StatusCode.INVALID_ARGUMENT", f"parameters: got 'sequence_end'; {known}; every row is scored by itself"],
        [
            "StatusCode.INVALID_ARGUMENT",
            "outputs[0].parameters: got 'classification'; allowed: none; a row's classes are in predicted_class and "
            "class_p_values",
        ],
        ["StatusCode.INVALID_ARGUMENT", f"parameters: got 'threshold'; {known}"],
    ]


def test_a_deadline_and_an_overload_arrive_as_such(start, rows, gate):
    """DEADLINE_EXCEEDED after the caller's own time; RESOURCE_EXHAUSTED while all places are taken."""
    detector = StandIn(gate=gate)
    running = start(detector, max_rows=1, max_pending_rows=1)
    triton = Triton(running.target)
    [late] = triton({"rows": rows(1), "client_timeout": 1})
    running.until(lambda: running.server.pending_requests == 0)
    pending = running.stub.Score.future(pb.ScoreRequest(inputs=array_to_tensor(rows(1))), timeout=60)
    running.until(lambda: running.server.pending_requests == 1)

    [refused] = triton({"rows": rows(1)})
    gate.set()

    assert len(pending.result(timeout=20).p_value) == 1
    assert late["error"] == ["StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded"]
    assert refused["error"][0] == "StatusCode.RESOURCE_EXHAUSTED"
    assert "1 rows are pending, 1 more would exceed max_pending_rows = 1" in refused["error"][1]


def test_the_server_and_its_detectors_describe_themselves(server):
    """As tritonclient reads it."""
    asked = {
        "is_server_live": {},
        "is_server_ready": {},
        "is_model_ready": {"model_name": "standin"},
        "get_server_metadata": {"as_json": True},
        "get_model_metadata": {"model_name": "standin", "as_json": True},
        "get_model_config": {"model_name": "standin", "as_json": True},
    }
    unknown = ({"model_name": "nope"}, {"model_name": "standin", "model_version": "2"})

    results = Triton(server.target)(
        *({"ask": ask, **arguments} for ask, arguments in asked.items()),
        *({"ask": "is_model_ready", **arguments} for arguments in unknown),
        {"ask": "get_model_metadata", "model_name": "nope"},
    )

    live, ready, model_ready, software, metadata, config = (r["answer"] for r in results[:6])
    assert (live, ready, model_ready) == (True, True, True)
    assert software == {"name": "softkin", "version": __version__, "extensions": ["model_configuration"]}
    assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": ["-1", "2", "3"]}]
    assert {o["name"]: (o["datatype"], o["shape"]) for o in metadata["outputs"]} == {
        "outlier_score": ("FP64", ["-1"]),
        "p_value": ("FP64", ["-1"]),
        "is_outlier": ("BOOL", ["-1"]),
        "predicted_class": ("INT32", ["-1"]),
        "credibility": ("FP64", ["-1"]),
        "confidence": ("FP64", ["-1"]),
        "class_p_values": ("FP64", ["-1", "3"]),
    }
    assert config["config"]["max_batch_size"] == 8
    assert config["config"]["input"] == [{"name": "input", "data_type": "TYPE_FP32", "dims": ["2", "3"]}]
    assert [r["answer"] for r in results[6:8]] == [False, False]
    assert results[8]["error"] == ["StatusCode.NOT_FOUND", "no detector named 'nope'; loaded: standin version 1"]
