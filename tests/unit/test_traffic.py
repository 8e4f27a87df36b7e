"""Calls under way: what is counted, and how long a server that stops waits for what."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from softkin import traffic
from softkin.traffic import LONGEST_NOISE_SECONDS, QUIET_SECONDS, Traffic


class Clock:
    """Time that passes only while somebody waits; `happens` is called with every step's time."""

    def __init__(self):
        self.now = 1000.0
        self.happens = lambda now: None

    def hurried(self, seconds):
        """Waits; True ends the wait for calls."""
        self.now += seconds
        return bool(self.happens(self.now))


@pytest.fixture
def clock(monkeypatch):
    """That of the traffic."""
    clock = Clock()
    monkeypatch.setattr(traffic, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def counts(calls):
    """Accepted, streams, turned away, and those that bring a request."""
    return calls.accepted, calls.streams, calls.turned_away, calls.unary


def test_calls_are_counted_by_kind_from_their_arrival_to_their_end():
    """Streams and refusals hold threads of their own or none for long: only the rest counts against the limit."""
    calls = Traffic()

    found = [(calls.arrive(stream=stream), counts(calls)) for stream in (False, True, False, False)]
    calls.turn_away()
    calls.turn_away()
    refused = counts(calls)
    calls.leave(refused=True)
    calls.leave(refused=True)
    answered = counts(calls)
    calls.leave(stream=True)
    streamed = counts(calls)
    calls.leave()

    assert found == [(True, (1, 0, 0, 1)), (True, (2, 1, 0, 1)), (True, (3, 1, 0, 2)), (True, (4, 1, 0, 3))]
    assert refused == (4, 1, 2, 1)
    assert answered == (2, 1, 0, 1)
    assert streamed == (1, 0, 0, 1)
    assert counts(calls) == (0, 0, 0, 0)


def test_once_calls_are_refused_none_is_counted():
    """Nobody would count its end, and the server would wait for it in vain."""
    calls = Traffic()
    calls.arrive()

    calls.refuse()

    assert not calls.arrive()
    assert not calls.arrive(stream=True)
    assert counts(calls) == (1, 0, 0, 1)


def test_where_nothing_has_come_for_a_while_nobody_waits(clock):
    """A server without traffic stops at once."""
    calls = Traffic()
    calls.arrive()
    calls.leave()
    clock.now += QUIET_SECONDS + 1e-9
    begun = clock.now

    assert calls.settle(30, clock.hurried) == pytest.approx(30)
    assert clock.now == begun


def test_accepted_calls_are_waited_for(clock):
    """And what is left of the time is for what comes after."""
    calls = Traffic()
    calls.arrive()
    clock.happens = lambda now: now >= 1007 > now - 0.01 and calls.leave()

    left = calls.settle(30, clock.hurried)

    assert counts(calls) == (0, 0, 0, 0)
    assert left == pytest.approx(23, abs=0.02)


def test_streams_have_all_of_the_time_after_the_wait(clock):
    """They may last, and go on while the port closes."""
    calls = Traffic()
    calls.arrive(stream=True)
    calls.arrive()
    clock.happens = lambda now: now >= 1007 > now - 0.01 and calls.leave()

    left = calls.settle(30, clock.hurried)

    assert counts(calls) == (1, 1, 0, 0)
    assert left == pytest.approx(23, abs=0.02)


def test_a_call_that_is_refused_is_waited_for_until_it_has_been_told(clock):
    """Its caller would see a fault instead of the refusal."""
    calls = Traffic()
    calls.arrive()
    calls.turn_away()
    clock.happens = lambda now: now >= 1002 > now - 0.01 and calls.leave(refused=True)

    assert calls.settle(30, clock.hurried) == pytest.approx(28, abs=0.02)


def test_the_wait_for_accepted_calls_ends_with_its_time(clock):
    """To the second, and with nothing left, never less: gRPC would take a negative time for its own."""
    calls = Traffic()
    calls.arrive()

    left = calls.settle(0.995, clock.hurried)

    assert left == 0
    assert clock.now == pytest.approx(1000.995, abs=0.01)
    assert calls.accepted == 1


def test_the_wait_ends_when_somebody_is_in_a_hurry(clock):
    """A second signal, or `stop_now`."""
    calls = Traffic()
    calls.arrive()
    clock.happens = lambda now: now >= 1001

    assert calls.settle(30, clock.hurried) == pytest.approx(29, abs=0.02)


def test_new_calls_are_refused_until_none_has_come_for_a_while(clock):
    """Those on their way when the port closes would end as if the server had a fault."""
    calls = Traffic()
    calls.refuse()
    calls.arrive()
    clock.happens = lambda now: now < 1000.5 and calls.arrive()

    left = calls.settle(30, clock.hurried)

    assert 30 - left == pytest.approx(0.5 + QUIET_SECONDS, abs=0.03)


def test_senders_that_never_listen_are_not_waited_for(clock):
    """One that retries at once would hold the server for all of its grace: a second after the last accepted call."""
    calls = Traffic()
    calls.arrive()
    calls.refuse()

    def happens(now):
        calls.arrive()
        if calls.accepted and now >= 1005:
            calls.leave()

    clock.happens = happens

    left = calls.settle(30, clock.hurried)

    assert 30 - left == pytest.approx(5 + LONGEST_NOISE_SECONDS, abs=0.03)
