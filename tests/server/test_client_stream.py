"""Client.score_stream: arrays as they come, answers in turn, errors where they belong."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import numpy as np
import pytest

from softkin import streaming
from softkin.errors import InvalidInputError, NotFoundError, OverloadedError, UnavailableError
from softkin.joining import join
from softkin.verdicts import GUARANTEES
from standin import StandIn


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_every_array_gets_the_answer_it_gets_alone(server, rows, guarantee):
    """Also those that take several requests of at most eight rows."""
    arrays = [rows(n, n) for n in (1, 29, 8, 3, 17)]

    with server.client() as client:
        found = list(client.score_stream(arrays, alpha=0.3, guarantee=guarantee, num_neighbors=2))
        alone = [client.score(x, alpha=0.3, guarantee=guarantee, num_neighbors=2) for x in arrays]

    assert [len(s) for s in found] == [1, 29, 8, 3, 17]
    for a, b in zip(found, alone, strict=True):
        assert a.p_value.tolist() == b.p_value.tolist()
        assert a.is_outlier.tolist() == b.is_outlier.tolist()
        assert a.budget == b.budget
        assert a.neighbors.ids.tolist() == b.neighbors.ids.tolist()
        assert a.parts.values.tolist() == b.parts.values.tolist()


def test_a_stream_of_pieces_joins_to_the_answer_for_the_whole(server, rows):
    """What `softkin score` does; a selection is made among all rows."""
    x = rows(40) % 50
    with server.client() as client:
        pieces = client.score_stream((x[i : i + 7] for i in range(0, 40, 7)), alpha=0.2, guarantee=GUARANTEES[3])

        found, whole = join(list(pieces)), client.score(x, alpha=0.2, guarantee=GUARANTEES[3])

    assert found.is_outlier.tolist() == whole.is_outlier.tolist()
    assert found.budget == whole.budget
    assert found.outlier_score.tolist() == StandIn().score(x).outlier_score.tolist()


def test_no_arrays_give_no_answers(server):
    """And no error."""
    with server.client() as client:
        assert list(client.score_stream([])) == []


def test_an_endless_source_is_read_only_as_far_as_answers_are_taken(start, rows):
    """Memory is bounded by the server's window, however fast the arrays come."""
    running = start(StandIn(), stream_window=4)
    taken = [0]

    def endless():
        while True:
            taken[0] += 1
            yield np.broadcast_to(rows(1), (4096, 2, 3)).copy()  # 100 kB: what the transport holds is a few

    with running.client() as client:
        answers = client.score_stream(endless())
        for _ in range(3):
            next(answers)
        answers.close()

        running.until(lambda: running.server.pending_requests == 0)  # its rows fill the queue until they are dropped
        assert len(client.score(rows(1))) == 1
    assert taken[0] < 200
    running.until(lambda: running.sample("softkin_streams") == 0)


def test_a_bad_array_raises_in_its_turn(server, rows):
    """Those before it are answered."""
    bad = rows(2)
    bad[1] = np.nan
    with server.client() as client:
        answers = client.score_stream([rows(1), bad, rows(1)])

        assert len(next(answers)) == 1
        with pytest.raises(InvalidInputError, match="row 1 has NaN or infinity"):
            next(answers)


def test_an_array_that_cannot_travel_raises_after_the_answers_before_it(server, rows):
    """The client's own refusals too."""
    with server.client() as client:
        answers = client.score_stream([rows(1), np.array(["text"])])

        assert len(next(answers)) == 1
        with pytest.raises(InvalidInputError, match="cannot travel"):
            next(answers)


def test_what_the_source_raises_comes_out(server, rows):
    """Not gRPC's account of it."""

    def source():
        yield rows(1)
        raise KeyError("gone")

    with server.client() as client:
        answers = client.score_stream(source())

        assert len(next(answers)) == 1
        with pytest.raises(KeyError, match="gone"):
            next(answers)


def test_refusals_have_softkins_own_errors(start, rows, gate, monkeypatch):
    """Unknown detector, a server that stays full with its delay, a server that is not there."""
    monkeypatch.setattr(streaming, "PATIENCE_SECONDS", 0.2)
    detector = StandIn(gate=gate)
    running = start(detector, max_rows=4, max_pending_rows=4, workers=1)
    first = running.client()
    with running.client(detector="nobody") as client, pytest.raises(NotFoundError, match="nobody"):
        next(client.score_stream([rows(1)]))
    held = first.score_stream([rows(4)])

    waiting = threading.Thread(target=lambda: list(held))
    waiting.start()
    assert detector.entered.acquire(timeout=20)
    with running.client() as client, pytest.raises(OverloadedError) as e:
        next(client.score_stream([rows(1)]))
    gate.set()
    waiting.join(20)
    first.close()
    running.server.stop_now()

    assert e.value.retry_after_seconds == 0.5
    with running.client(timeout_seconds=2) as client, pytest.raises(UnavailableError):
        next(client.score_stream([rows(1)]))


def test_a_label_chooses_the_version(start, rows):
    """For calls, streams and descriptions."""
    running = start(StandIn(version="1"), StandIn(version="2"))
    running.server._registry.set_label("standin", "1", "stable")
    running.server._registry.set_label("standin", "2", "canary")

    with running.client() as stable, running.client(label="canary") as canary:
        found = [
            stable.score(rows(1)).budget.version,
            canary.score(rows(1)).budget.version,
            next(canary.score_stream([rows(1)])).budget.version,
            canary.detector_info().version,
        ]
        labels = canary.detector_info().labels

    assert found == ["1", "2", "2", "2"]
    assert labels == ("canary",)
    with running.client(label="beta") as client, pytest.raises(NotFoundError, match="canary = 2, stable = 1"):
        client.score(rows(1))


def test_arrays_are_split_alike_whatever_went_before(start, rows):
    """What the last request carried is none of the next array's; after a full message there would be no room at all."""
    running = start(StandIn(), max_message_bytes=1024)
    with running.client() as client:
        client.score(x := rows(500))
        largest = math.ceil(500 / running.sample("softkin_request_rows_count"))
        before = running.sample("softkin_request_rows_count")

        found = list(client.score_stream([x[:largest]] * 3))

    assert [len(s) for s in found] == [largest] * 3
    assert running.sample("softkin_request_rows_count") == before + 3


def test_what_no_waiting_can_help_is_no_overload(start, rows):
    """A message over the server's limit, from a client that does not know it."""
    running = start(StandIn(), max_message_bytes=4096)
    with running.client() as client:
        for call in (client.score, lambda x: next(client.score_stream([x]))):
            client._limits = replace(client._known_limits(), max_message_bytes=1 << 20)
            with pytest.raises(InvalidInputError, match="max_message_bytes = 4096: send several smaller ones"):
                call(rows(250))


@pytest.mark.parametrize("size", [250, 1000], ids=["refused with words", "cut off by gRPC"])
def test_a_refusal_for_size_teaches_the_limits_that_hold_now(start, rows, size):
    """Another server may have come in the place of the one that told them; other refusals teach nothing."""
    running = start(StandIn(), max_message_bytes=4096)
    with running.client() as client:
        for call in (client.score, lambda x: join(list(client.score_stream([x])))):
            client._limits = replace(client._known_limits(), max_message_bytes=1 << 20)
            with pytest.raises(InvalidInputError, match="message"):
                call(rows(size))
            assert len(call(rows(size)).p_value) == size
            known = client._limits
            with pytest.raises(InvalidInputError, match="dtype"):
                call(rows(1).astype("f8"))
            assert client._limits is known
