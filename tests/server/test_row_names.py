"""Callers learn what nearest training rows are called where the server says so, and nowhere else."""

from __future__ import annotations

import json

import numpy as np
import pytest

from inference_requests import stub
from softkin import Client, Detector
from softkin.inference import grpc_service_pb2 as oip
from softkin_training.build import build


@pytest.fixture(scope="module")
def named(tiny, tmp_path_factory):
    """The tiny bundle with names."""
    path = tmp_path_factory.mktemp("named") / "b"
    rows = {"bank_rows": tiny.bank, "calibration_rows": tiny.calibration}
    build(path, tiny.model, tiny.spec, **rows, naming=lambda ids: [f"secret/{i}.png" for i in ids])
    return path


def infer(running, x):
    """The answer of the Open Inference Protocol, with neighbours."""
    asked = oip.ModelInferRequest(model_name="tiny", raw_input_contents=[x.tobytes()])
    asked.inputs.add(name="inputs", datatype="FP32", shape=x.shape)
    asked.parameters["num_neighbors"].int64_param = 3
    return stub(running).ModelInfer(asked, timeout=20)


def test_names_travel_as_scoring_in_process_gives_them(start, named, tiny):
    """In a request, a stream and the Open Inference Protocol, for the rows of each and no others."""
    x = tiny.inliers[:6]
    expected = Detector.load(named, device="cpu").score(x, num_neighbors=3).neighbors
    assert expected.names == {i: f"secret/{i}.png" for i in np.unique(expected.ids).tolist()}
    running = start(bundles=(named,), device="cpu", row_names=True)

    with Client(running.target) as client:
        assert client.score(x, num_neighbors=3).neighbors.names == expected.names
        one, rest = client.score_stream([x[:1], x[1:]], num_neighbors=3)
        assert client.score(x).neighbors is None
    assert one.neighbors.names == {i: f"secret/{i}.png" for i in np.unique(expected.ids[:1]).tolist()}
    assert rest.neighbors.names == {i: f"secret/{i}.png" for i in np.unique(expected.ids[1:]).tolist()}
    told = json.loads(infer(running, x).parameters["neighbors_names"].string_param)
    assert {int(i): name for i, name in told.items()} == expected.names


def test_no_byte_of_a_name_leaves_a_server_that_was_not_told_to(start, named, tiny):
    """Paths and keys may be nobody else's business; ids and all else are as ever."""
    x = tiny.inliers[:6]
    running = start(bundles=(named,), device="cpu")

    answer = running.score(x, num_neighbors=3)
    other = infer(running, x)

    assert len(answer.neighbors.ids.data) == 6 * 2 * 3 * 8
    assert b"secret" not in answer.SerializeToString() + other.SerializeToString()
    assert "neighbors_names" not in other.parameters
