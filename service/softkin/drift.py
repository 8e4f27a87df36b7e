"""Watches a stream of outlier scores for drift: whether the rows served still look like the calibration rows.

The evidence is a test martingale M with M_0 = 1. While calibration rows and stream are exchangeable,
P(M ever reaches 1 / level) <= level, however long the stream runs (Ville's inequality). Three steps make it so:

1. Sequential ranks in bounded memory. n calibration scores cut the line into n + 1 gaps. Under exchangeability the next
   score falls into a gap with probability (1 + earlier stream scores in it) / (n + 1 + earlier stream scores): the
   predictive rule of Polya's urn (Blackwell & MacQueen 1973). So a position drawn at random inside the gap is a
   conformal p-value that is uniform and independent of all earlier ones, exactly, with one counter per gap, for any n;
   p-values against the n calibration rows alone are dependent, and martingales on them raise false alarms for ever.
   Neighbouring gaps may be merged: an urn of merged colours is an urn again. Equal scores are ordered at random.
2. Bets on p (Vovk, Gammerman, Shafer 2005): densities on (0, 1], each of which multiplies its stake.
3. A stake for every start: bets that began before a change lose meanwhile, so the capital is spread over all starting
   times, sum_s prior(s) prod_{s <= i <= t} bet(p_i), which one number per density carries on.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from softkin import conformal
from softkin.drift_bets import bets, kept, log_low_bet, staked

Floats = NDArray[np.float64]

DEFAULT_LEVEL = 0.01
FINE_GAPS, COARSE_GAPS = 512, 512
"""The strangest gaps keep a counter each, where the evidence lies; the others are merged to this many."""
SLICE_ROWS = 128
"""Rows that are ranked at a time; among themselves they are compared pair by pair."""
MOST_WAITING_ROWS = 64 * SLICE_ROWS
"""Rows that may wait to be ranked by somebody else."""
WINDOW_ROWS = 10_000
"""Rows that count as recent."""
HISTOGRAM_BINS = 20


@dataclass(frozen=True, kw_only=True)
class DriftReport:
    """What a watch has seen. `alarm` has a guarantee, `cusum` has none."""

    rows: int
    """Rows watched since the watch began."""
    level: float
    """Chance of an alarm, ever, while nothing drifts."""
    log10_martingale: float
    """Evidence against exchangeability now, in powers of ten."""
    max_log10_martingale: float
    """The largest it has been."""
    alarm_row: int
    """Number of rows watched when the martingale first reached 1 / level; 0: it never has."""
    cusum: float
    """Recent evidence for strange rows, in nats, at least 0: quick, falls again, and gives no false-alarm guarantee."""
    window_rows: int
    """Number of recent rows, at most `WINDOW_ROWS`, behind the two figures below."""
    flag_rate: float
    """Share of recent rows with p-value <= `alpha`; 0 before the first."""
    alpha: float
    histogram: NDArray[np.int64]
    """`[HISTOGRAM_BINS]` recent p-values in bins of equal width on (0, 1]: flat while nothing drifts."""

    @property
    def alarm(self) -> bool:
        """Whether the martingale has ever reached 1 / level."""
        return self.alarm_row > 0


class DriftWatch:
    """The martingale of one detector's stream; safe to use from several threads. Memory does not grow.

    Args:
        calibration: `[n]` sorted ascending, n >= 1: outlier scores of the calibration rows.
        level: chance of a false alarm that is accepted, in (0, 1).
        rng: where the randomness for ties and inside gaps comes from; the operating system when None.
    """

    def __init__(
        self, calibration: Floats, *, level: float = DEFAULT_LEVEL, rng: np.random.Generator | None = None
    ) -> None:
        self.level = level
        self._calibration = calibration
        self._rng = np.random.default_rng() if rng is None else rng
        self._lock = threading.Lock()
        self._waiting: list[Floats] = []
        self._waiting_rows = 0
        self._waiting_lock = threading.Lock()  # held for moments: whoever notes rows never waits for a ranking
        n = len(calibration)
        cuts = np.union1d(np.arange(max(0, n - FINE_GAPS), n), np.linspace(0, n - 1, COARSE_GAPS).astype(np.int64))
        tie_break = self._rng.random(n)
        tie_break = tie_break[np.lexsort((tie_break, calibration))]
        self._values, block = np.unique(calibration[cuts], return_inverse=True)
        self._keys = block + tie_break[cuts]
        self._weights = np.diff(np.concatenate([[-1], cuts, [n]]))
        self._rows = self._alarm_row = 0
        self._log_wealth = np.full(len(bets(np.ones(1))), -np.inf)
        self._log_martingale = self._max_log_martingale = self._cusum = 0.0
        self._recent = np.zeros(WINDOW_ROWS, np.float32)

    def observe(self, scores: Floats) -> None:
        """Add `[B]` outlier scores in the order of service; they are ranked slice by slice, and before any report."""
        if self.note(scores) >= SLICE_ROWS:
            self.catch_up()

    def note(self, scores: Floats) -> int:
        """Add scores for `catch_up` to rank; returns how many rows wait for it.

        Whoever finds `MOST_WAITING_ROWS` or more must call it.
        """
        with self._waiting_lock:
            self._waiting.append(np.array(scores, np.float64))  # a copy: the caller may use the array again
            self._waiting_rows += len(scores)
            return self._waiting_rows

    def catch_up(self) -> None:
        """Rank what waits: some 1.5 microseconds a row, more beside other work."""
        with self._lock:
            self._catch_up()

    def report(self, alpha: float = 0.05) -> DriftReport:
        """What has been seen so far; `alpha`: at which to count recent flags."""
        with self._lock:
            self._catch_up()
            recent = self._recent[: self._rows]
            bins = np.ceil(recent.astype(np.float64) * HISTOGRAM_BINS * (1 - 1e-6)) - 1  # k / bins ends bin k - 1
            return DriftReport(
                rows=self._rows,
                level=self.level,
                log10_martingale=self._log_martingale / math.log(10),
                max_log10_martingale=self._max_log_martingale / math.log(10),
                alarm_row=self._alarm_row,
                cusum=self._cusum,
                window_rows=len(recent),
                flag_rate=float((recent <= np.float32(alpha)).mean()) if len(recent) else 0.0,
                alpha=alpha,
                histogram=np.bincount(bins.astype(np.int64), minlength=HISTOGRAM_BINS),
            )

    def state(self) -> dict[str, NDArray[np.generic]]:
        """All that a watch on the same calibration needs to go on, as arrays of fixed size; see `restore`."""
        with self._lock:
            self._catch_up()
            return {
                "values": self._values,
                "keys": self._keys,
                "weights": self._weights.copy(),  # which are updated in place
                "log_wealth": self._log_wealth,
                "counters": np.array([self._rows, self._alarm_row], np.int64),
                "evidence": np.array([self._log_martingale, self._max_log_martingale, self._cusum]),
                "recent": self._recent.copy(),
            }

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from a `state`. An alarm at another level than before is judged by the largest martingale so far.

        Raises:
            ValueError: the state is of another calibration or another version of softkin, or damaged.
        """
        now = self.state()
        if state.keys() != now.keys():
            raise ValueError(f"arrays are {sorted(state)}, expected {sorted(now)}")
        for name, array in now.items():
            if state[name].shape != array.shape or state[name].dtype != array.dtype:
                raise ValueError(f"array {name!r} is {state[name].dtype}{list(state[name].shape)}")
        weights = np.asarray(state["weights"], np.int64)
        rows, alarm_row = map(int, state["counters"])
        if weights.sum() != len(self._calibration) + 1 + rows or not np.array_equal(state["values"], now["values"]):
            raise ValueError("it belongs to another calibration")
        evidence, keys, p = (np.asarray(state[k], np.float64) for k in ("evidence", "keys", "recent"))
        sound = (  # else an alarm might never come
            weights.min() >= 1
            and 0 <= alarm_row <= rows
            and np.isfinite(evidence).all()
            and evidence[2] >= 0
            and (np.diff(keys) >= 0).all()
            and (np.abs(keys - np.asarray(now["keys"], np.float64)) <= 1).all()  # a draw between the same two values
            and ((p[:rows] > 0) & (p[:rows] <= 1)).all()
            and (np.asarray(state["log_wealth"], np.float64) < np.inf).all()  # no NaN either
        )
        if not sound:
            raise ValueError("it is damaged: no watch has such numbers")
        with self._lock:
            self._keys = np.array(state["keys"], np.float64)
            self._weights = weights.copy()
            self._log_wealth = np.array(state["log_wealth"], np.float64)
            self._rows = rows
            self._log_martingale, self._max_log_martingale, self._cusum = map(float, state["evidence"])
            self._recent = np.array(state["recent"], np.float32)
            reached = self._max_log_martingale >= -math.log(self.level)
            self._alarm_row = (alarm_row or rows) if reached else 0

    def _catch_up(self) -> None:
        with self._waiting_lock:
            if not self._waiting:
                return
            waiting, self._waiting, self._waiting_rows = self._waiting, [], 0
        scores = np.concatenate(waiting)
        for start in range(0, len(scores), SLICE_ROWS):
            self._take(scores[start : start + SLICE_ROWS])

    def _take(self, scores: Floats) -> None:
        """Rank, bet and remember at most `SLICE_ROWS` scores; all of it, or none."""
        weights = self._weights.copy()
        try:
            self._bet(scores)
        except BaseException:
            # Out of memory, say. A state that does not hold together would, once saved, be refused at every start.
            self._weights = weights
            raise

    def _bet(self, scores: Floats) -> None:
        bets_ET = bets(self._sequential_p_values(scores))
        t = self._rows + 1 + np.arange(len(scores))
        # In units of the largest stake; the densities are bounded, so a slice cannot leave the range of float64.
        unit = max(0.0, float(self._log_wealth.max()))
        gain_ET = np.ones((len(bets_ET), len(scores) + 1))  # up to and with each row, after a column of ones
        np.cumprod(bets_ET, axis=1, out=gain_ET[:, 1:])
        started_ET = np.cumsum(staked(t) / gain_ET[:, :-1], axis=1)
        wealth_ET = gain_ET[:, 1:] * (np.exp(self._log_wealth - unit)[:, None] + started_ET * math.exp(-unit))
        log_martingale_T = unit + np.log(wealth_ET.mean(axis=0) + kept(t) * math.exp(-unit))
        with np.errstate(divide="ignore"):
            log_wealth = unit + np.log(wealth_ET[:, -1])
        reached = log_martingale_T >= -math.log(self.level)
        p = conformal.p_values(scores, self._calibration)
        cusum = self._cusum_after(p)
        self._log_wealth, self._cusum = log_wealth, cusum
        self._log_martingale = float(log_martingale_T[-1])
        self._max_log_martingale = max(self._max_log_martingale, float(log_martingale_T.max()))
        if reached.any() and not self._alarm_row:
            self._alarm_row = int(t[reached.argmax()])
        self._recent[(t - 1) % WINDOW_ROWS] = p
        self._rows = int(t[-1])

    def _sequential_p_values(self, scores: Floats) -> Floats:
        """Ranks among calibration and all earlier scores, the slice's own included: i.i.d. uniform on (0, 1]."""
        tie_break, inside = self._rng.random((2, len(scores)))
        block = np.searchsorted(self._values, scores)
        tied = self._values[np.minimum(block, len(self._values) - 1)] == scores
        gap = np.searchsorted(self._keys, block + np.where(tied, tie_break, 0.0))
        order = gap.astype(np.int16)
        stranger = _count_earlier(order[:, None] > order)
        equal = _count_earlier(order[:, None] == order)
        total = self._weights.sum()
        above = total - np.cumsum(self._weights)
        p = above[gap] + stranger + (1.0 - inside) * (self._weights[gap] + equal)
        self._weights += np.bincount(gap, minlength=len(self._weights))
        return np.asarray(p / (total + np.arange(len(scores))))

    def _cusum_after(self, p: Floats) -> float:
        """Page's CUSUM of the mean bet on strange rows, against calibration rows alone: it never gets used to drift."""
        path = self._cusum + np.cumsum(log_low_bet(p))
        return float(path[-1] - min(0.0, path.min()))


_EARLIER = np.tri(SLICE_ROWS, k=-1, dtype=np.bool_).T.copy()


def _count_earlier(pairs: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """`[T]`: for each row i, how many j < i have pairs[j, i]; T < 256."""
    pairs &= _EARLIER[: len(pairs), : len(pairs)]
    return np.add.reduce(pairs.view(np.uint8), axis=0, dtype=np.uint8)
