"""`softkin score` where the server has no stream to spare."""

from __future__ import annotations

import json

import numpy as np
import pytest

from softkin import cli
from softkin.v1 import outlier_pb2 as pb
from standin import StandIn


@pytest.fixture
def x():
    """Some more rows than are sent at a time."""
    return np.random.default_rng(0).integers(0, 9, (600, 2, 3)).astype(np.float32)


@pytest.fixture
def score(x, tmp_path, capsys):
    """Runs the command on these rows; gives status, standard error and what is printed, a row or budget a line."""
    np.savez(tmp_path / "x.npz", x_test=x)

    def run(target, *more):
        status = cli.main(["score", "--target", target, str(tmp_path / "x.npz"), "--json", *more])
        captured = capsys.readouterr()
        return status, captured.err, [json.loads(line) for line in captured.out.splitlines()]

    return run


@pytest.mark.parametrize("guarantee", ["marginal", "false_discovery_rate"])
def test_a_server_without_streams_is_asked_by_unary_calls(start, score, x, guarantee):
    """The numbers are those of a stream; a selection is made among all rows, not those of each call."""
    running = start(StandIn(), max_streams=0)

    status, err, lines = score(running.target, "--guarantee", guarantee, "--alpha", "0.3")

    with running.client() as client:
        expected = client.score(x, guarantee=guarantee, alpha=0.3)
    assert (status, err) == (0, "")
    assert [(line["p_value"], line["is_outlier"]) for line in lines[:-1]] == list(
        zip(expected.p_value.tolist(), expected.is_outlier.tolist(), strict=True)
    )


def test_a_server_whose_streams_are_all_open_is_asked_by_unary_calls(start, score, x):
    """They may stay open for as long as their callers please."""
    running = start(StandIn(), max_streams=1)
    request = pb.ScoreStreamRequest(request=pb.ScoreRequest())
    holding = running.stub.ScoreStream(iter_then_wait(running, request), timeout=60)
    next(holding)

    status, err, lines = score(running.target)

    assert running.sample("softkin_streams") == 1
    assert (status, err, len(lines)) == (0, "", len(x) + 1)
    holding.cancel()


def iter_then_wait(running, message):
    """One message, and then nothing until the server has ended."""
    yield message
    running.server.wait()


def test_a_server_that_is_full_is_said_to_be(start, score, rows, gate):
    """What cannot be scored either way is not tried for ever."""
    running = start(StandIn(gate=gate), workers=1, max_pending_rows=1, max_rows=1, max_streams=0)
    waiting = running.stub.Score.future(
        pb.ScoreRequest(inputs=pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[1, 2, 3], data=rows(1).tobytes()))
    )
    running.until(lambda: running.server.pending_requests == 1)

    status, err, lines = score(running.target)

    assert (status, lines) == (1, [])
    assert "max_pending_rows = 1" in err
    gate.set()
    waiting.result()
