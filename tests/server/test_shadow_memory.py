"""What a comparison holds, and for how long."""

from __future__ import annotations

import gc
import time
import weakref

from softkin.scores import Scores
from softkin.tickets import Ticket
from standin import StandIn
from standin_bundles import Shifted


def shadowed(start, candidate, **options):
    """A server that compares all that version 1 answers with a candidate of version 2."""
    running = start(StandIn(), candidate, admin_port=0, shadow_share=1.0, **options)
    with running.admin() as admin:
        admin.set_label("standin", "1", "stable")
        admin.set_label("standin", "2", "shadow")
    return running


def compared(running, result="agree"):
    """Rows that came to this end."""
    return running.sample("softkin_shadow_rows_total", detector="standin", version="2", result=result)


def test_what_waits_is_bounded_in_bytes_too(start, rows, gate):
    """Requests of images hold memory that the gate no longer counts: at most one message's worth."""
    candidate = Shifted(version="2", gate=gate)
    running = shadowed(start, candidate, workers=1, max_message_bytes=2048)

    running.score(rows(60))  # of 24 bytes: 1440
    assert candidate.entered.acquire(timeout=20)
    for n in (26, 25):  # 624, too many, and 600
        running.score(rows(n))
    running.until(lambda: compared(running, "dropped") == 26)
    gate.set()
    running.until(lambda: compared(running) == 85)

    assert compared(running, "dropped") == 26


def test_room_for_comparisons_comes_back(start, rows):
    """Of rows and of bytes: else all that comes would be dropped from some request on, for ever."""
    room = {"max_rows": 80, "max_batch_rows": 20, "max_message_bytes": 2048}
    running = shadowed(start, Shifted(version="2"), **room)

    for n in range(1, 6):  # each takes half of both
        running.score(rows(40))
        running.until(lambda n=n: compared(running) == 40 * n)


def test_one_thread_at_a_time_takes_room_or_gives_it_back(start, rows, gate):
    """Room that is lost never comes back."""
    candidate = Shifted(version="2", gate=gate)
    running = shadowed(start, candidate)
    shadow = running.server._path.shadow
    running.score(rows(3))
    assert candidate.entered.acquire(timeout=20)

    with shadow._changed:
        gate.set()
        running.until(lambda: compared(running) == 3)
        time.sleep(0.05)
        held = shadow._pending_rows, shadow._pending_bytes
    running.until(lambda: shadow._pending_rows == shadow._pending_bytes == 0)

    assert held == (3, 3 * 6 * 4)


def test_what_waits_holds_its_rows_and_verdicts_and_nothing_of_the_batch_it_was_in(start, rows, gate):
    """P-values of every class for all rows of a batch would be megabytes for each request of one row."""

    def alive():
        return {id(found): found for found in gc.get_objects() if type(found) in (Ticket, Scores)}

    before = alive()  # of other tests; held, so that nothing new gets their ids
    candidate = Shifted(version="2", gate=gate)
    running = shadowed(start, candidate, workers=1)
    running.score(rows(3))
    assert candidate.entered.acquire(timeout=20)

    running.score(rows(2), num_neighbors=3)

    running.until(lambda: alive().keys() <= before.keys())
    gate.set()
    running.until(lambda: compared(running) == 5)


def test_a_candidate_that_is_unloaded_gives_its_memory_back(start, rows):
    """At once, not with the next comparison, which may never come."""
    candidate = Shifted(version="2")
    running, held = shadowed(start, candidate), weakref.ref(candidate)
    del candidate
    running.score(rows(2))
    running.until(lambda: compared(running) == 2)
    with running.admin() as admin:
        gc.disable()
        try:
            admin.remove_label("standin", "shadow")
            admin.unload("standin", "2")

            running.until(lambda: held() is None)
        finally:
            gc.enable()
