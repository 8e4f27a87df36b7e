"""What only the garbage collector can free."""

from __future__ import annotations

import gc
import types


def frames_in_garbage(call):
    """Frames that only the garbage collector could free, after three calls."""
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(3):
            call()
        gc.collect()
        return [found for found in gc.garbage if isinstance(found, types.FrameType)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
