"""Lets a candidate score a share of the live traffic silently, and tells how far its verdicts differ.

What the version that serves by default has answered is scored again by the version labelled `shadow`, after its caller
has the answer, in a thread of its own. Nothing of it enters the metrics or the drift watch of any version.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from softkin.cancellation import Cancellation
from softkin.certificate import false_alarm_bound
from softkin.errors import CancelledError, InvalidInputError, PreconditionError
from softkin.logs import log, log_line
from softkin.metrics import Metrics
from softkin.registry import SHADOW, STABLE, Registry
from softkin.scores import RowScores, Scores
from softkin.scoring_detector import ScoringDetector
from softkin.settings import ServerSettings
from softkin.tickets import Ticket
from softkin.verdicts import Rule

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a candidate made of rows that another version answered."""

    shadow: str
    """Digest of the candidate."""
    live: str
    """Digest of the version that answered."""
    rows: int = 0
    disagreements: int = 0
    """Rows with another verdict at the request's alpha, or that the candidate refuses to score."""
    scored: int = 0
    """Rows that it has scored."""
    difference: float = 0.0
    """Sum of absolute differences of p-values over them."""

    @property
    def disagreement(self) -> float:
        """Share of rows; 0 before the first."""
        return self.disagreements / max(self.rows, 1)

    @property
    def disagreement_limit(self) -> float:
        """The share in all traffic does not exceed this, at confidence 0.95: Clopper and Pearson's exact limit.

        It takes rows for independent; rows of one request often are not. And it holds for one look: whoever looks again
        after more rows, until it is small, finds it too small more often.
        """
        # The quantile of Beta(k + 1, n - k), which is that of a certificate for k + 1 of n rows.
        return false_alarm_bound(self.disagreements + 1, self.rows, CONFIDENCE)

    @property
    def mean_difference(self) -> float:
        """Mean absolute difference of p-values."""
        return self.difference / max(self.scored, 1)


class _Answered(NamedTuple):
    """What is compared of an answered request, and no more: its ticket holds the scores of its whole batch."""

    candidate: ScoringDetector
    live: str
    """Digest of the version that answered."""
    x: NDArray[np.generic]
    rule: Rule
    smoothing_seed: int | None
    p_value: NDArray[np.float64]
    is_outlier: NDArray[np.bool_]


class Shadow:
    """Compares candidates with what serves, and judges whether one may take its place.

    A comparison begins anew when either side changes.

    Args:
        settings: share of the traffic, largest batch, what a promotion takes.
        registry: tells who is the candidate, and who serves.
        metrics: where rows are counted.
        busy: whether callers wait, so that there is no time for this.
        draw: a number in [0, 1) per request; those below the share are compared.
    """

    def __init__(
        self,
        settings: ServerSettings,
        registry: Registry,
        metrics: Metrics,
        *,
        busy: Callable[[], bool],
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._metrics = metrics
        self._busy = busy
        self._draw = draw
        # Whatever its size, one request fits: else large ones would never be compared.
        self._room = max(4 * settings.max_batch_rows, settings.max_rows)
        self._room_bytes = settings.max_message_bytes
        self._changed = threading.Condition(threading.Lock())
        self._queue: deque[_Answered] = deque()
        self._pending_rows = self._pending_bytes = 0
        self._closed = False
        self._cancellation = Cancellation()
        self._comparisons: dict[str, Comparison] = {}
        self._complained: dict[str, str] = {}
        registry.check_default = self.check_promotion
        metrics.shadows_watched(self._reports)
        self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
        self._thread.start()

    def offer(self, ticket: Ticket) -> None:
        """Take an answered request, if it is drawn and there is room; returns at once."""
        name, live = ticket.detector.manifest.name, ticket.detector
        shadow = self._registry.labelled(name, SHADOW)
        if shadow is None or shadow is live or self._registry.default(name) is not live:
            return
        if self._draw() >= self._settings.shadow_share:
            return
        rows, share = len(ticket.x), ticket.share
        assert share is not None
        own = slice(None) if share.rows is None else share.rows
        answered = _Answered(
            candidate=shadow,
            live=live.digest,
            x=ticket.x,
            rule=ticket.rule,
            smoothing_seed=ticket.smoothing_seed,
            p_value=share.scores.p_value[own].copy(),
            is_outlier=share.scores.is_outlier[own].copy(),
        )
        busy = self._busy()
        with self._changed:
            fits = self._pending_rows + rows <= self._room and self._pending_bytes + ticket.x.nbytes <= self._room_bytes
            if fits and not busy and not self._closed:
                self._queue.append(answered)
                self._pending_rows += rows
                self._pending_bytes += ticket.x.nbytes
                self._changed.notify()
                return
        self._count(shadow, "dropped", rows)

    def comparison(self, candidate: ScoringDetector) -> Comparison:
        """How a candidate compares with the version that serves by default now."""
        name = candidate.manifest.name
        live = self._registry.default(name)
        none = Comparison(shadow=candidate.digest, live="" if live is None else live.digest)
        found = self._comparisons.get(name, none)
        return found if (found.shadow, found.live) == (none.shadow, none.live) else none

    def check_promotion(self, candidate: ScoringDetector) -> None:
        """Let another version become the one that serves; one that is no shadow always may.

        Raises:
            PreconditionError: it was compared on too few rows, or disagrees too much.
        """
        m, s = candidate.manifest, self._settings
        if SHADOW not in self._registry.labels_of(candidate):
            return
        found = self.comparison(candidate)
        remedy = f"or set {STABLE!r} with force"
        if found.rows < s.shadow_min_rows:
            advice = "wait for more traffic" if s.shadow_share else "give the server a shadow_share above 0"
            raise PreconditionError(
                f"version {m.version!r} was compared with live traffic on {found.rows} rows, and shadow_min_rows = "
                f"{s.shadow_min_rows}; {advice}, {remedy}"
            )
        if found.disagreement_limit > s.shadow_max_disagreement:
            # More rows bring the limit down to the share.
            advice = "find out why" if found.disagreement > s.shadow_max_disagreement else "wait for more traffic"
            raise PreconditionError(
                f"version {m.version!r} disagrees on {found.disagreements} of {found.rows} rows of live traffic: up to "
                f"{found.disagreement_limit:.4g} at confidence {CONFIDENCE:g}, and shadow_max_disagreement = "
                f"{s.shadow_max_disagreement:g}; {advice}, {remedy}"
            )

    def close(self) -> None:
        """Take no more, leave what is waiting, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._cancellation.cancel()
        self._thread.join()

    def _reports(self) -> dict[tuple[str, str], tuple[float, ...]]:
        """The figures of every candidate; of one that was not compared yet they are 0, which shows that it is there."""
        found: dict[tuple[str, str], tuple[float, ...]] = {}
        for detector in self._registry:
            name, version = detector.manifest.name, detector.manifest.version
            if self._registry.labelled(name, SHADOW) is detector and self._registry.default(name) is not detector:
                c = self.comparison(detector)
                found[name, version] = c.rows, c.disagreement, c.mean_difference
        return found

    def _work(self) -> None:
        while (taken := self._next()) is not None:
            try:
                self._compare(taken)
            except Exception as e:  # a fault of ours; without this thread nothing would be compared any more
                self._complain(taken.candidate, e)
            with self._changed:
                self._pending_rows -= len(taken.x)
                self._pending_bytes -= taken.x.nbytes
            del taken  # an idle thread must not hold a detector that is served no longer

    def _next(self) -> _Answered | None:
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            return None if self._closed else self._queue.popleft()

    def _compare(self, answered: _Answered) -> None:
        candidate, rows = answered.candidate, len(answered.x)
        try:
            own = self._score(answered)
        except CancelledError:
            self._count(candidate, "dropped", rows)
            return
        except Exception as e:
            # After a promotion, the candidate's callers would have met this error too.
            self._add(answered, disagreements=rows)
            self._complain(candidate, e)
            return
        self._add(
            answered,
            disagreements=int(np.count_nonzero(own.is_outlier != answered.is_outlier)),
            scored=rows,
            difference=float(np.abs(own.p_value - answered.p_value).sum()),
        )

    def _score(self, answered: _Answered) -> Scores:
        """What the shadow would have answered.

        Raises:
            CancelledError: callers had to wait meanwhile, or the server stops.
        """
        candidate, r, step = answered.candidate, answered.rule, self._settings.max_batch_rows
        rule = candidate.rule(alpha=r.alpha, guarantee=r.guarantee, confidence=r.confidence, smoothed=r.smoothed)
        x = candidate.check(answered.x)
        parts = []
        for start in range(0, len(x), step):
            if self._busy():
                raise CancelledError
            parts.append(candidate.score_rows(x[start : start + step], cancellation=self._cancellation))
        return candidate.judge(RowScores.concatenate(parts), rule, x, smoothing_seed=answered.smoothing_seed)

    def _add(self, answered: _Answered, *, disagreements: int, scored: int = 0, difference: float = 0.0) -> None:
        """Add the rows of one request to the comparison of its two versions, which begins anew when either changes."""
        candidate, live, rows = answered.candidate, answered.live, len(answered.x)
        name = candidate.manifest.name
        before = self._comparisons.get(name)
        if before is None or (before.shadow, before.live) != (candidate.digest, live):
            before = Comparison(shadow=candidate.digest, live=live)
        added = replace(
            before,
            rows=before.rows + rows,
            disagreements=before.disagreements + disagreements,
            scored=before.scored + scored,
            difference=before.difference + difference,
        )
        self._comparisons = {**self._comparisons, name: added}
        self._count(candidate, "disagree", disagreements)
        self._count(candidate, "agree", rows - disagreements)

    def _count(self, shadow: ScoringDetector, result: str, rows: int) -> None:
        self._metrics.shadow_rows(shadow.manifest.name, shadow.manifest.version, result, rows)

    def _complain(self, shadow: ScoringDetector, error: Exception) -> None:
        """Once for each candidate: every further row may fail alike."""
        name = shadow.manifest.name
        if self._complained.get(name) == shadow.digest:
            return
        self._complained[name] = shadow.digest
        fields = {"detector": name, "version": shadow.manifest.version, "error": error}
        log.warning(log_line("shadow_failed", **fields), exc_info=not isinstance(error, InvalidInputError))
