"""What only the garbage collector can free."""

from __future__ import annotations

import gc
import time
import types

SETTLED, PATIENCE = 0.1, 20.0
"""Seconds without garbage after which earlier tests are over with, and how long they have for it."""


def frames_in_garbage(call):
    """Frames that only the garbage collector could free, after three calls.

    Streams of earlier tests, whose threads end when they are scheduled, leave some too: that is waited for first.
    """

    def three_calls():
        for _ in range(3):
            call()

    deadline = time.monotonic() + PATIENCE
    while _frames_left_by(lambda: time.sleep(SETTLED)) and time.monotonic() < deadline:
        pass
    return _frames_left_by(three_calls)


def _frames_left_by(work):
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        work()
        gc.collect()
        return [found for found in gc.garbage if isinstance(found, types.FrameType)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
