"""The gate: what fits gets in, what does not is refused and takes nothing, and every share comes back."""

from __future__ import annotations

import threading
import time

import pytest

from softkin.admission import Admission
from softkin.errors import InvalidInputError, OverloadedError
from softkin.settings import ServerSettings


@pytest.fixture
def gate():
    """For 10 rows, 1024 bytes and 3 requests."""
    sizes = {"max_rows": 10, "max_message_bytes": 1024, "max_pending_bytes": 1024}
    return Admission(ServerSettings(max_pending_rows=10, max_pending_requests=3, **sizes))


def pending(gate):
    """Rows, bytes and requests."""
    return gate.pending_rows, gate.pending_bytes, gate.pending_requests


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([(4, 1), (6, 1)], "10 rows are pending, 1 more would exceed max_pending_rows = 10"),
        ([(1, 400), (1, 624)], "1024 bytes of inputs are pending, 1 more would exceed max_pending_bytes = 1024"),
        ([(1, 1)] * 3, "3 requests are pending, max_pending_requests = 3"),
    ],
)
def test_each_limit_can_be_reached_and_not_passed(gate, shares, message):
    """To the row, the byte and the request; a refusal names the limit, tells how long to wait, and takes no share."""
    for share in shares:
        gate.enter(*share)

    with pytest.raises(OverloadedError) as e:
        gate.enter(1, 1)

    assert (str(e.value), e.value.retry_after_seconds) == (f"{message}; retry after 0.5 s", 0.5)
    assert pending(gate) == (*map(sum, zip(*shares, strict=True)), len(shares))
    gate.leave(*shares[0])
    gate.enter(1, 1)


@pytest.mark.parametrize(("shares", "full"), [([(10, 1)], True), ([(1, 1)] * 3, True), ([(9, 1024), (0, 0)], False)])
def test_the_full_gate_refuses_whatever_comes(gate, shares, full):
    """Before its size is known: rows or requests are at their limit; bytes are counted when they are there."""
    for share in shares:
        gate.enter(*share)

    if full:
        with pytest.raises(OverloadedError, match="are pending"):
            gate.refuse_full()
    else:
        gate.refuse_full()
    assert pending(gate) == (*map(sum, zip(*shares, strict=True)), len(shares))


def test_what_has_room_for_one_row_without_bytes_is_no_reason_before_the_size_is_known(gate):
    """It would be named though another limit is the one that is passed."""
    for share in ((7, 1024), (1, 0), (1, 0)):
        gate.enter(*share)

    with pytest.raises(OverloadedError, match=r"^3 requests are pending"):
        gate.refuse_full()


def test_what_could_enter_an_empty_gate_is_told_to_come_again_and_what_never_could_is_not(gate):
    """To the byte: whoever retries with more than may ever be pending would do so for ever."""
    gate.enter(1, 1)

    with pytest.raises(OverloadedError, match="1 bytes of inputs are pending, 1024 more would exceed"):
        gate.enter(1, 1024)
    with pytest.raises(InvalidInputError, match=r"^inputs: they have 1025 bytes in memory"):
        gate.enter(1, 1025)

    gate.leave(1, 1)
    gate.enter(1, 1024)


@pytest.mark.parametrize("what", ["enter", "leave", "refuse_full"])
def test_one_at_a_time_passes_the_gate(gate, what):
    """Two that looked at once would both find the last place, or a share would be lost."""
    for _ in range(3 if what == "refuse_full" else 1):
        gate.enter(1, 1)
    found = []

    def passes():
        try:
            found.append(getattr(gate, what)(*(() if what == "refuse_full" else (1, 1))))
        except OverloadedError as e:
            found.append(e)

    passing = threading.Thread(target=passes)
    with gate._lock:
        before = pending(gate)
        passing.start()
        passing.join(0.05)
        assert (passing.is_alive(), pending(gate)) == (True, before)
    passing.join(10)

    assert len(found) == 1


def test_all_who_wait_for_a_departure_are_woken_by_it(gate):
    """At once where one has been since they looked; and after their time where there is none."""
    gate.enter(3, 30)
    gate.await_departure(gate.departures, 0.01)
    woken = []

    def wait():
        gate.await_departure(0, 600)
        woken.append(gate.departures)

    waiting = [threading.Thread(target=wait, daemon=True) for _ in range(3)]
    for thread in waiting:
        thread.start()
    while gate._awaiting < 3:
        time.sleep(0.001)
    gate.leave(3, 30)
    for thread in waiting:
        thread.join(10)

    assert woken == [1, 1, 1]
    assert (*pending(gate), gate._awaiting) == (0, 0, 0, 0)
    begun = time.monotonic()
    gate.await_departure(0, 60)
    assert time.monotonic() - begun < 20
