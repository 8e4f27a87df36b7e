"""What the one way of all requests gives back when it does not score."""

from __future__ import annotations

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from softkin.converters import ScoreCall
from softkin.drift_watches import DriftWatches
from softkin.errors import UnavailableError
from softkin.metrics import Metrics
from softkin.registry import Registry
from softkin.scoring import ScoringPath
from softkin.settings import ServerSettings
from standin import SHAPE, StandIn


class Call:
    """A gRPC call that ends when the test says so."""

    def __init__(self):
        self.ended = []

    def time_remaining(self):
        """There is no deadline: a time too large for any clock."""
        return 1e18

    def add_callback(self, callback):
        """Ask to be told of the end."""
        self.ended.append(callback)
        return True


def test_a_request_that_a_closed_batcher_refuses_leaves_the_gate_once():
    """The call's own end comes on top: pending counts must not fall below 0."""
    path = ScoringPath(
        ServerSettings(bundles=["x"]), Registry(), Metrics(CollectorRegistry(), version="0"), DriftWatches()
    )
    path.close()
    call = Call()
    rows = ScoreCall(np.zeros((2, *SHAPE), np.float32), None, None, None, None, 0)

    with pytest.raises(UnavailableError, match="the server is stopping"):
        path.score(StandIn(), rows, call)
    for ended in call.ended:
        ended()

    gate = path.admission
    assert (gate.pending_rows, gate.pending_bytes, gate.pending_requests) == (0, 0, 0)
