from __future__ import annotations

import threading

import pytest

from softkin.batching import Batcher


@pytest.fixture
def make():
    """Batchers that end with the test."""
    made: list[Batcher] = []

    def batcher(*, workers=1, max_batch_rows=256, **options):
        made.append(Batcher(workers=workers, max_batch_rows=max_batch_rows, **options))
        return made[-1]

    yield batcher
    for b in made:
        b.close()


@pytest.fixture
def gate():
    """Holds the stand-in's batches until it is set."""
    event = threading.Event()
    yield event
    event.set()
