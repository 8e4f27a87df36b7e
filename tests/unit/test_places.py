"""Places: one for the next call, whatever those do that hold them."""

from __future__ import annotations

import threading

from softkin.places import Places


class Call:
    """Waits in its thread until it is cancelled, or told to go."""

    def __init__(self, places):
        self.holds, self.go, self.cancelled = threading.Event(), threading.Event(), False
        self.thread = threading.Thread(target=self._run, args=(places,), daemon=True)
        self.thread.start()

    def _run(self, places):
        with places.hold(self):
            self.holds.set()
            self.go.wait(20)

    def cancel(self):
        """End it, as gRPC does."""
        self.cancelled = True
        self.go.set()


def test_where_all_are_taken_the_longest_holder_goes(monkeypatch):
    """And the next longest for the one after."""
    monkeypatch.setattr("softkin.places.PATIENCE_SECONDS", 0.01)
    places = Places(2)
    calls = []

    for _ in range(4):
        calls.append(Call(places))
        assert calls[-1].holds.wait(20)

    assert [call.cancelled for call in calls] == [True, True, False, False]
    for call in calls:
        call.go.set()
        call.thread.join(20)


def test_room_is_made_by_whoever_has_had_his_time(monkeypatch):
    """One that has just come is about to leave by itself; where nobody holds a place there is nothing to do."""
    places = Places(9)
    places.make_room()
    first = Call(places)
    assert first.holds.wait(20)
    second = Call(places)
    assert second.holds.wait(20)

    monkeypatch.setattr("softkin.places.PATIENCE_SECONDS", 1000)
    places.make_room()
    early = first.cancelled
    monkeypatch.setattr("softkin.places.PATIENCE_SECONDS", 0)
    places.make_room()

    assert (early, first.cancelled, second.cancelled) == (False, True, False)
    second.go.set()


def test_who_has_just_come_keeps_his_place_for_a_moment(monkeypatch):
    """Whoever has lost patience waits for that: many may do so at once, each after the other had just come in."""
    monkeypatch.setattr("softkin.places.PATIENCE_SECONDS", 0)
    monkeypatch.setattr("softkin.places.LEAST_SECONDS", 1000)
    places = Places(1)
    first = Call(places)
    assert first.holds.wait(20)

    second = Call(places)
    early = second.holds.wait(0.05)
    first.go.set()

    assert second.holds.wait(20)
    assert (early, first.cancelled) == (False, False)
    monkeypatch.setattr("softkin.places.LEAST_SECONDS", 0.01)
    third = Call(places)
    assert third.holds.wait(20)
    assert second.cancelled
    third.go.set()


def test_who_can_wait_for_a_place_costs_nobody_theirs(monkeypatch):
    """A burst of callers that do what they should is served one after the other."""
    monkeypatch.setattr("softkin.places.PATIENCE_SECONDS", 20)
    places = Places(1)
    first = Call(places)
    assert first.holds.wait(20)

    second = Call(places)
    assert not second.holds.wait(0.05)
    first.go.set()

    assert second.holds.wait(20)
    assert not first.cancelled
    second.go.set()
