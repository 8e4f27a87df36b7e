"""The admin port while a change is under way: large bundles take minutes to load."""

from __future__ import annotations

import threading

import pytest

from softkin.admin import THREADS
from softkin.admin_client import AdminClient
from softkin.errors import UnavailableError


def test_callers_who_gave_up_waiting_leave_room_for_the_next(operated, admin, loading):
    """Else as many tries as there are threads would shut the port, also to who wants to see what is loaded."""
    loading.gate = threading.Event()
    target = f"127.0.0.1:{operated.server.admin_port}"
    loads = threading.Thread(target=admin.load, args=("v2",))
    loads.start()
    assert loading.entered.acquire(timeout=20)

    for _ in range(THREADS):
        with (
            AdminClient(target, timeout_seconds=1) as hasty,
            pytest.raises(UnavailableError, match="no answer in time"),
        ):
            hasty.load("v3")
    try:
        with AdminClient(target, timeout_seconds=10) as patient:
            seen = [d.version for d in patient.detectors()]
    finally:
        loading.gate.set()
        loads.join(timeout=20)

    assert seen == ["1"]
    assert len(loading.loaded) == 1
