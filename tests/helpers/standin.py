"""A detector whose scores are arithmetic, and a server process around it.

A row's outlier score is its sum, its predicted class its sum modulo the number of classes; with n = 99 calibration
rows, p = 1 / (1 + floor(sum)) rounded to a whole number of hundredths.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import threading
import time
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softkin.cancellation import Cancellation
from softkin.certificate import DEFAULT_CONFIDENCE, certify
from softkin.errors import CancelledError, InvalidInputError
from softkin.manifest import Layer, Manifest
from softkin.scores import Neighbors, Parts, RowScores, Scores
from softkin.verdicts import Guarantee, Rule, check_rule

CALIBRATION_SIZE = 99
SHAPE = (2, 3)


def manifest(name: str = "standin", version: str = "1") -> Manifest:
    """What the stand-in claims to be."""
    return Manifest(
        name=name,
        version=version,
        created="2026-01-01T00:00:00+00:00",
        input_name="input",
        input_dtype="float32",
        input_shape=SHAPE,
        classes=("ankle boot", "sandal", "sneaker [new]"),
        layers=(
            Layer(name="conv", dim=4, metric="cosine", temperature=0.1, weight=1.0, reducer="none"),
            Layer(name="dense", dim=2, metric="squared_euclidean", temperature=2.5, weight=1.0, reducer="none"),
        ),
        nonconformity="density",
        default_alpha=0.05,
        calibration_size=CALIBRATION_SIZE,
        predicted_class_rows=(50, 30, 19),
        certificate=certify(0.05, CALIBRATION_SIZE),
        bank_size=7,
    )


class StandIn:
    """Implements the interface of `softkin.detector.Detector`.

    Args:
        name: of the detector.
        version: of the detector.
        gate: when given, every batch waits until it is set, or the batch is cancelled.
        failure: when given, every batch raises it.
    """

    def __init__(
        self,
        name: str = "standin",
        version: str = "1",
        *,
        gate: threading.Event | None = None,
        failure: Exception | None = None,
    ) -> None:
        self.manifest = manifest(name, version)
        self.digest = hashlib.sha256(self.manifest.to_json().encode()).hexdigest()
        self.device = "cpu"
        self.smallest_p_value = 1 / (CALIBRATION_SIZE + 1)
        self.calibration_scores = np.arange(CALIBRATION_SIZE, dtype=np.float64)
        self.gate = gate
        self.failure = failure
        self.entered = threading.Semaphore(0)
        self.warmed_up = False
        self.rows_scored = 0
        self.batches: list[int] = []
        self.leak_bytes, self.batch_seconds = 0, 0.0
        self._leaked: list[bytes] = []
        self._rules = lru_cache(maxsize=256)(partial(_make_rule, self.manifest.predicted_class_rows))
        self._lock = threading.Lock()

    def warm_up(self, rows: int) -> None:
        """Note that it happened, and with how many rows."""
        self.warmed_up, self.warm_up_rows = True, rows

    def score(self, x: NDArray[np.generic], *, smoothing_seed: int | None = None, **options: Any) -> Scores:
        """As `Detector.score`."""
        num_neighbors = options.pop("num_neighbors", 0)
        rule = self.rule(**options, smoothed=smoothing_seed is not None)
        found = self.score_rows(self.check(x), num_neighbors=num_neighbors)
        return self.judge(found, rule, x, smoothing_seed=smoothing_seed)

    def rule(
        self,
        *,
        alpha: float | None = None,
        guarantee: Guarantee = "marginal",
        confidence: float = DEFAULT_CONFIDENCE,
        smoothed: bool = False,
    ) -> Rule:
        """As `Detector.rule`."""
        return self._rules(self.manifest.default_alpha if alpha is None else alpha, guarantee, confidence, smoothed)

    def score_rows(
        self, x: NDArray[np.generic], *, num_neighbors: int = 0, cancellation: Cancellation | None = None
    ) -> RowScores:
        """Score by arithmetic, once the gate is open."""
        self.entered.release()
        if self.gate is not None:
            self._wait(self.gate, cancellation or Cancellation())
        if self.failure is not None:
            raise self.failure
        if self.batch_seconds:
            time.sleep(self.batch_seconds)
        with self._lock:
            self.rows_scored += len(x)
            self.batches = [*self.batches[-999:], len(x)]
            if self.leak_bytes:
                self._leaked.append(os.urandom(self.leak_bytes * len(x)))
        score = x.reshape(len(x), -1).astype(np.float64).sum(axis=1)
        return RowScores(
            nonconformity=np.stack([score, score + 1, score + 2], axis=1),
            predicted_class=(np.abs(score).astype(np.int64) % 3).astype(np.int32),
            outlier_score=score,
            neighbors=_neighbors(score, num_neighbors) if num_neighbors else None,
            parts=_parts(score) if num_neighbors else None,
            infer_seconds=0.25,
        )

    def judge(
        self, found: RowScores, rule: Rule, x: NDArray[np.generic], *, smoothing_seed: int | None = None
    ) -> Scores:
        """P-values by arithmetic; a smoothing seed is added to every one as so many billionths."""
        p = np.maximum(1, np.round(100 / (1 + np.maximum(np.floor(found.outlier_score), 0)))) / 100
        class_p = np.stack([p, p / 3, p / 7], axis=1)
        p = p + (smoothing_seed or 0) * 1e-9
        verdicts = rule.decide(p)
        return Scores(
            outlier_score=found.outlier_score,
            p_value=p,
            is_outlier=verdicts.is_outlier,
            predicted_class=found.predicted_class,
            credibility=class_p[:, 0],
            confidence=1 - class_p[:, 1],
            class_p_values=class_p,
            budget=rule.budget(
                verdicts,
                detector=self.manifest.name,
                version=self.manifest.version,
                digest=self.digest,
                device=self.device,
            ),
            neighbors=found.neighbors,
            parts=found.parts,
        )

    @staticmethod
    def _wait(gate: threading.Event, cancellation: Cancellation) -> None:
        stopped = threading.Event()
        with cancellation.stopping_by(stopped.set):
            for _ in range(6000):
                if stopped.is_set():
                    raise CancelledError
                if gate.wait(timeout=0.01):
                    return
        raise AssertionError("nobody opened the gate for a minute")

    def check(self, x: NDArray[np.generic]) -> NDArray[np.float32]:
        """As `Detector.check`."""
        if x.dtype != np.float32:
            raise InvalidInputError("inputs", f"dtype is {x.dtype}, this detector takes float32")
        if x.shape[1:] != SHAPE:
            raise InvalidInputError("inputs", f"shape is {list(x.shape)}, this detector takes [rows, 2, 3]")
        if len(x) == 0:
            raise InvalidInputError("inputs", "there are no rows; send at least 1")
        rows = x.astype(np.float32)
        finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
        if not finite.all():
            row = int((~finite).argmax())
            raise InvalidInputError("inputs", f"row {row} has NaN or infinity; every value must be finite")
        return rows


def _make_rule(
    class_sizes: tuple[int, ...], alpha: float, guarantee: Guarantee, confidence: float, smoothed: bool
) -> Rule:
    return check_rule(
        guarantee,
        alpha=alpha,
        confidence=confidence,
        calibration_size=CALIBRATION_SIZE,
        class_sizes=class_sizes,
        classes=manifest().classes,
        smoothed=smoothed,
    )


def _neighbors(score: NDArray[np.float64], k: int) -> Neighbors:
    ids = np.broadcast_to(score.astype(np.int64)[:, None, None], (len(score), 2, k)) + np.arange(k)
    return Neighbors(
        layers=("conv", "dense"),
        ids=ids,
        labels=(np.abs(ids) % 3).astype(np.int32),
        distances=(np.arange(k, dtype=np.float32) / 3) + np.zeros(ids.shape, np.float32),
        shares=np.float32(0.1) + np.zeros(ids.shape, np.float32),
    )


def _parts(score: NDArray[np.float64]) -> Parts:
    return Parts(names=("one_part", "another"), values=np.stack([score / 3, score / 7], axis=1))


def main() -> int:
    """Serve the stand-in; with --hold FIFO, requests in flight wait until a writer closes that FIFO."""
    from softkin.process import serve
    from softkin.settings import ServerSettings

    parser = argparse.ArgumentParser()
    parser.add_argument("--drain-grace-seconds", type=float, default=30)
    parser.add_argument("--drain-delay-seconds", type=float, default=0)
    parser.add_argument("--drift-state", type=Path)
    parser.add_argument("--drift-save-seconds", type=float, default=10)
    parser.add_argument("--version", default="1")
    parser.add_argument("--hold", type=Path)
    parser.add_argument(
        "--leak-bytes", type=int, default=0, help="forgotten with every row, for tests that must see it"
    )
    parser.add_argument("--batch-seconds", type=float, default=0.0, help="time that every batch takes")
    parser.add_argument("--max-pending-requests", type=int, default=128)
    options = parser.parse_args()
    gate = None if options.hold is None else threading.Event()
    detector = StandIn(version=options.version, gate=gate)
    detector.leak_bytes, detector.batch_seconds = options.leak_bytes, options.batch_seconds

    def open_gate() -> None:
        assert gate is not None
        with options.hold.open() as fifo:  # blocks until the test opens the other end
            fifo.read()
        gate.set()

    if gate is not None:
        threading.Thread(target=open_gate, daemon=True).start()
    settings = ServerSettings(
        bundles=(Path("standin"),),
        host="127.0.0.1",
        port=0,
        metrics_port=0,
        drain_grace_seconds=options.drain_grace_seconds,
        drain_delay_seconds=options.drain_delay_seconds,
        drift_state=options.drift_state,
        drift_save_seconds=options.drift_save_seconds,
        max_pending_requests=options.max_pending_requests,
    )
    status = serve(settings, load=lambda path, **options: detector)
    print(f"event=rows_scored rows={detector.rows_scored}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
