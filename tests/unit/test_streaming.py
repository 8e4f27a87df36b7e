"""A stream at the moments that a caller cannot bring about at will."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from softkin.errors import OverloadedError
from softkin.statuses import CallEndedError
from softkin.streaming import LOOK_UP_SECONDS, _Stream


class Context:
    """Of a call whose caller has gone before, or goes when `leave` is called."""

    def __init__(self, gone):
        self.gone, self.leave = gone, None

    def add_callback(self, callback):
        """False where it would never be called."""
        self.leave = callback
        return not self.gone

    def is_active(self):
        """Nobody waits."""
        return False

    def time_remaining(self):
        """Long."""
        return 60.0


@pytest.mark.parametrize("gone", [True, False])
def test_a_stream_whose_caller_has_gone_ends_as_such_and_not_well(gone):
    """Before its first message is read, or while the next is awaited."""
    context = Context(gone)

    def requests():
        context.leave()
        yield from ()

    with pytest.raises(CallEndedError, match="CANCELLED"):
        next(_Stream(None, None, 1, context).answers(requests()))


def test_room_that_was_made_while_the_gate_was_asked_is_not_waited_for():
    """Its departure has been: the next one may be the last for long."""
    waits = []
    admission = SimpleNamespace(departures=0, await_departure=lambda *arguments: waits.append(arguments))

    def submit(detector, call, context):
        admission.departures += 1
        if admission.departures == 1:
            raise OverloadedError("full", 0.5)
        return "ticket"

    stream = _Stream(SimpleNamespace(admission=admission, submit=submit), None, 1, Context(gone=False))

    assert stream._enter(None, None) == "ticket"
    assert waits == [(0, LOOK_UP_SECONDS)]
