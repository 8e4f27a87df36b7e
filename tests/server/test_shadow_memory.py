"""What a comparison holds, and for how long."""

from __future__ import annotations

import gc
import weakref

from standin import StandIn
from standin_bundles import Shifted


def test_a_candidate_that_is_unloaded_gives_its_memory_back(start, rows):
    """At once, not with the next comparison, which may never come."""
    candidate = Shifted(version="2")
    running, held = start(StandIn(), candidate, admin_port=0, shadow_share=1.0), weakref.ref(candidate)
    del candidate
    with running.admin() as admin:
        admin.set_label("standin", "1", "stable")
        admin.set_label("standin", "2", "shadow")
        running.score(rows(2))
        agree = {"detector": "standin", "version": "2", "result": "agree"}
        running.until(lambda: running.sample("softkin_shadow_rows_total", **agree) == 2)
        gc.disable()
        try:
            admin.remove_label("standin", "shadow")
            admin.unload("standin", "2")

            running.until(lambda: held() is None)
        finally:
            gc.enable()
