"""Which row of the caller's an error names, however many requests its rows travelled in."""

from __future__ import annotations

import numpy as np
import pytest

from event_loops import run
from softkin import cli
from softkin.errors import InvalidInputError
from standin import StandIn

SAID = "inputs: row {} has NaN or infinity; every value must be finite"


def with_nan(rows, at):
    """Rows of zeros, but for one."""
    x = np.zeros((rows, 2, 3), np.float32)
    x[at, 1, 2] = np.nan
    return x


@pytest.mark.parametrize("at", [0, 7, 8, 21, 39])
def test_a_row_is_counted_in_the_array_and_not_in_its_request(shared_server, at):
    """Of which there are five here."""
    with shared_server.client() as client, pytest.raises(InvalidInputError) as e:
        client.score(with_nan(40, at))

    assert str(e.value) == SAID.format(at)


def test_a_row_of_a_stream_is_counted_in_its_array(shared_server):
    """The second of two arrays, in three requests each."""
    with shared_server.client() as client:
        answers = client.score_stream([np.zeros((20, 2, 3), np.float32), with_nan(20, 17)])
        next(answers)
        with pytest.raises(InvalidInputError) as e:
            next(answers)

    assert str(e.value) == SAID.format(17)


def test_the_asynchronous_client_counts_alike(shared_server):
    """Calls and streams."""

    async def errors(client):
        found = []
        try:
            await client.score(with_nan(40, 21))
        except InvalidInputError as e:
            found.append(str(e))
        try:
            await anext(client.score_stream([with_nan(20, 17)]))
        except InvalidInputError as e:
            found.append(str(e))
        return found

    assert run(shared_server, errors) == [SAID.format(21), SAID.format(17)]


@pytest.mark.parametrize("streams", [32, 0])
@pytest.mark.parametrize("at", [3, 700])
def test_the_command_line_counts_in_the_file(start, tmp_path, capsys, streams, at):
    """Which it sends some rows at a time, on a stream or by unary calls."""
    running = start(StandIn(), max_streams=streams, max_rows=100)
    np.savez(tmp_path / "x.npz", x_test=with_nan(1000, at))

    assert cli.main(["score", "--target", running.target, str(tmp_path / "x.npz")]) == 1

    assert capsys.readouterr().err == f"softkin: error: {SAID.format(at)}\n"
