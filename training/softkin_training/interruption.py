"""Commands that are told to end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""Exit status of a command that was, by Ctrl-C or by SIGTERM."""
AGAIN = "run it again: what is done stays"
"""How an ablation that was cut short goes on, for messages."""


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, by way of the code that takes half-written files and servers away.

    Under torchrun for the process that writes alone: the others are told to end when one of them fails, may be waiting
    for it outside of Python, and would bury its error.

    Raises:
        KeyboardInterrupt: it came.
    """
    if threading.current_thread() is not threading.main_thread() or os.environ.get("RANK", "0") != "0":
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
