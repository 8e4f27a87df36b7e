"""What the log says of candidates that fail."""

from __future__ import annotations

import logging
import threading

from softkin.errors import DeviceError
from standin import StandIn
from standin_bundles import Shifted


def test_candidates_that_take_turns_to_fail_are_each_told_of_once(start, rows, caplog):
    """Every row of each fails, and a line with a traceback for each of them would fill the disk."""
    names = ("one", "two")
    detectors = [d for n in names for d in (StandIn(n), Shifted(n, "2", failure=DeviceError(f"{n} is out of memory")))]
    running = start(*detectors, admin_port=0, shadow_share=1.0)
    with running.admin() as admin:
        for name in names:
            admin.set_label(name, "1", "stable")
            admin.set_label(name, "2", "shadow")

    with caplog.at_level(logging.WARNING, "softkin.server"):
        for _ in range(3):
            for name in names:
                running.score(rows(2), detector=name)
        for name in names:
            failed = {"detector": name, "version": "2", "result": "disagree"}
            running.until(lambda failed=failed: running.sample("softkin_shadow_rows_total", **failed) == 6)

    assert [r.getMessage() for r in caplog.records] == [
        f'event=shadow_failed detector={name} version=2 error="{name} is out of memory"' for name in names
    ]


def test_a_fault_of_ours_does_not_end_the_comparison(start, rows, caplog, monkeypatch):
    """Out of memory, say: all that follows would be dropped, and the candidate could not be promoted for ever."""
    running = start(StandIn(), Shifted("standin", "2"), admin_port=0, shadow_share=1.0)
    count, failed = running.metrics.shadow_rows, threading.Event()
    with running.admin() as admin:
        admin.set_label("standin", "1", "stable")
        admin.set_label("standin", "2", "shadow")

    def fail_first(*arguments):
        if not failed.is_set():
            failed.set()
            raise MemoryError("none left")
        count(*arguments)

    monkeypatch.setattr(running.metrics, "shadow_rows", fail_first)
    with caplog.at_level(logging.WARNING, "softkin.server"):
        running.score(rows(2))
        assert failed.wait(20)
        running.score(rows(3))
        agree = {"detector": "standin", "version": "2", "result": "agree"}
        running.until(lambda: running.sample("softkin_shadow_rows_total", **agree) == 3)

    assert [r.getMessage() for r in caplog.records] == [
        'event=shadow_failed detector=standin version=2 error="none left"'
    ]
