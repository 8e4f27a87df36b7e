"""A request on its way through the batcher, the batch it rides in, and its share of what is found."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from softkin.cancellation import Cancellation
from softkin.errors import CancelledError
from softkin.scores import RowScores, Scores, Share
from softkin.scoring_detector import ScoringDetector
from softkin.verdicts import Rule


class Ticket:
    """One request on its way through the batcher.

    Args:
        detector: that scores it.
        x: rows that `detector.check` gave back.
        rule: by `detector.rule`.
        num_neighbors: nearest training rows per row and layer.
        smoothing_seed: given where the rule is smoothed.
        deadline: when nobody waits for it any more, by `time.monotonic`.
        reader: a number for the one that the answer may have to wait for; None where a thread takes it at once.
        ended: called once, when there is a result of any kind.
    """

    __slots__ = (
        "batches",
        "deadline",
        "detector",
        "done",
        "ended",
        "error",
        "latch",
        "num_neighbors",
        "parts",
        "reader",
        "rule",
        "share",
        "smoothing_seed",
        "started",
        "submitted",
        "taken",
        "x",
    )

    def __init__(
        self,
        detector: ScoringDetector,
        x: NDArray[np.generic],
        rule: Rule,
        *,
        num_neighbors: int = 0,
        smoothing_seed: int | None = None,
        deadline: float = math.inf,
        reader: int | None = None,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self.detector = detector
        self.x = x
        self.rule = rule
        self.num_neighbors = num_neighbors
        self.smoothing_seed = smoothing_seed
        self.deadline = deadline
        self.reader = reader
        self.ended = ended
        self.submitted = self.started = 0.0
        self.taken = 0
        self.parts: dict[int, RowScores] = {}
        self.batches: list[Batch] = []
        self.share: Share | None = None
        self.error: BaseException | None = None
        self.done = False
        self.latch = threading.Lock()  # held until there is a result: a tenth of the cost of an Event
        self.latch.acquire()

    def wait(self) -> Share:
        """Block until there is an answer. To be called once.

        Raises:
            CancelledError: by `Batcher.cancel`.
            ExpiredError: the deadline passed first.
            DeviceError: the device failed on it.
            UnavailableError: the batcher was closed.
        """
        self.latch.acquire()
        # Not kept: an error holds this frame, and with it the ticket and its rows, until the garbage is collected.
        error, self.error = self.error, None
        if self.share is not None:
            return self.share
        try:
            raise error or CancelledError
        finally:
            del error

    def forget_request(self) -> None:
        """Keep the answer alone, which may have to wait for its reader: rows and detector would only take memory."""
        del self.x, self.detector


class Batch:
    """Slices of tickets of one detector that run together."""

    def __init__(self, detector: ScoringDetector, num_neighbors: int) -> None:
        self.detector = detector
        self.num_neighbors = num_neighbors
        self.tickets: list[tuple[Ticket, slice]] = []
        self.rows = 0
        self.cancellation = Cancellation()

    def add(self, ticket: Ticket, rows: int) -> None:
        """Add the next `rows` rows of a ticket, which is told of that by whoever takes the whole batch."""
        self.tickets.append((ticket, slice(ticket.taken, ticket.taken + rows)))
        self.rows += rows

    def inputs(self) -> NDArray[np.generic]:
        """The rows of all the slices, one after the other."""
        parts = [t.x[s] for t, s in self.tickets]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def share_verdicts(a: Ticket, b: Ticket) -> bool:
    """Whether two tickets may be judged together: their rows get the same p-values and verdicts as alone."""
    return a.rule is b.rule and a.rule.guarantee != "false_discovery_rate" and not a.rule.smoothed


def shares_of(tickets: list[tuple[Ticket, slice]], scores: Scores) -> list[Share]:
    """Each ticket's share of scores that were judged together; of a copy, if it may have to wait for its reader.

    So a reader that does not read keeps its own rows in memory, and not those of others.
    """
    shares: list[Share] = []
    origin = tickets[0][1].start
    for reader, group in groupby(tickets, key=_reader):
        whose = list(group)
        held, start = scores, origin
        if reader is not None:
            start = whose[0][1].start
            held = scores.take(np.arange(start - origin, whose[-1][1].stop - origin))
        if len(tickets) > 1:
            held.lists()  # here once, instead of in every caller's thread
        for _, rows in whose:
            own = None if len(tickets) == 1 else slice(rows.start - start, rows.stop - start)
            shares.append(Share(held, own, {}))
    return shares


def _reader(pair: tuple[Ticket, slice]) -> int | None:
    return pair[0].reader
