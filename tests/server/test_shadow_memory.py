"""What a comparison holds, and for how long."""

from __future__ import annotations

import gc
import weakref

from standin import StandIn
from standin_bundles import Shifted


def shadowed(start, candidate, **options):
    """A server that compares all that version 1 answers with a candidate of version 2."""
    running = start(StandIn(), candidate, admin_port=0, shadow_share=1.0, **options)
    with running.admin() as admin:
        admin.set_label("standin", "1", "stable")
        admin.set_label("standin", "2", "shadow")
    return running


def agreed(running):
    """Rows on which both versions came to the same verdict."""
    return running.sample("softkin_shadow_rows_total", detector="standin", version="2", result="agree")


def test_room_for_comparisons_comes_back(start, rows):
    """Of rows and of bytes: else all that comes would be dropped from some request on, for ever."""
    room = {"max_rows": 80, "max_batch_rows": 20, "max_message_bytes": 2048}
    running = shadowed(start, Shifted(version="2"), **room)

    for n in range(1, 6):  # each takes half of both
        running.score(rows(40))
        running.until(lambda n=n: agreed(running) == 40 * n)


def test_a_candidate_that_is_unloaded_gives_its_memory_back(start, rows):
    """At once, not with the next comparison, which may never come."""
    candidate = Shifted(version="2")
    running, held = shadowed(start, candidate), weakref.ref(candidate)
    del candidate
    running.score(rows(2))
    running.until(lambda: agreed(running) == 2)
    with running.admin() as admin:
        gc.disable()
        try:
            admin.remove_label("standin", "shadow")
            admin.unload("standin", "2")

            running.until(lambda: held() is None)
        finally:
            gc.enable()
