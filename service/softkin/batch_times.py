"""How long a batch takes: a line through the batches seen, recent ones weighing more."""

from __future__ import annotations

FORGETTING = 0.98
"""The part of its weight that a batch keeps with each newer one, so that the last fifty or so decide."""


class BatchTimes:
    """Weighted least squares for `seconds = fixed + rows * per_row`, updated in constant memory.

    Not safe to share between threads without a lock.
    """

    def __init__(self) -> None:
        self._weight = self._rows = self._seconds = self._rows2 = self._product = 0.0

    def add(self, rows: int, seconds: float) -> None:
        """Take one more batch into account."""
        self._weight = FORGETTING * self._weight + 1.0
        self._rows = FORGETTING * self._rows + rows
        self._seconds = FORGETTING * self._seconds + seconds
        self._rows2 = FORGETTING * self._rows2 + rows * rows
        self._product = FORGETTING * self._product + rows * seconds

    def predict(self, rows: int) -> float:
        """Seconds that a batch of so many rows takes; 0 before the first one."""
        if not self._weight:
            return 0.0
        mean_rows, mean_seconds = self._rows / self._weight, self._seconds / self._weight
        variance = self._rows2 / self._weight - mean_rows**2
        # With all batches of about one size, fixed time and time per row cannot be told apart.
        if variance <= 1e-9 * mean_rows**2:
            return mean_seconds * rows / mean_rows if rows > mean_rows else mean_seconds
        per_row = max(0.0, (self._product / self._weight - mean_rows * mean_seconds) / variance)
        return max(0.0, mean_seconds + per_row * (rows - mean_rows))
