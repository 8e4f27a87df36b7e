"""The one way into service, and out of it: verify, build, prove, warm up, watch, and only then serve."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from softkin import bundle
from softkin.device import cuda_driver_present
from softkin.drift_watches import DriftWatches
from softkin.errors import CancelledError, ConflictError, InvalidInputError, UnavailableError
from softkin.logs import log, log_line
from softkin.metrics import Metrics
from softkin.registry import Registry
from softkin.scoring_detector import ScoringDetector
from softkin.settings import ServerSettings

LOOK_UP_SECONDS = 0.1
"""How often a change that waits for another checks whether it is still wanted: it holds a thread meanwhile."""


class Load(Protocol):
    """Makes a verified and proven detector of a bundle, as `Detector.load` does."""

    def __call__(self, path: Path, *, device: str, threads: int | None) -> ScoringDetector:
        """The detector of the bundle at `path`."""


def default_alpha(settings: ServerSettings, detector: ScoringDetector) -> float:
    """The false-alarm rate that this server uses when a request names none."""
    return detector.manifest.default_alpha if settings.alpha is None else settings.alpha


class Loaded(NamedTuple):
    """What a detector is, without a reference to it that would keep its memory."""

    name: str
    version: str
    digest: str
    device: str

    @classmethod
    def of(cls, detector: ScoringDetector) -> Loaded:
        """What this detector is."""
        return cls(detector.manifest.name, detector.manifest.version, detector.digest, detector.device)


class Loader:
    """Changes what is served, one change at a time, from any thread; a change that fails has changed nothing.

    Requests in flight hold their detector, and finish on it whatever happens here.

    Args:
        settings: device, default rule, largest batch.
        registry: where detectors are put once they can serve.
        metrics: where they are described.
        watches: where their rows are watched for drift.
        load: makes detectors; `Detector.load` when None.
    """

    def __init__(
        self,
        settings: ServerSettings,
        registry: Registry,
        metrics: Metrics,
        watches: DriftWatches,
        load: Load | None = None,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._metrics = metrics
        self._watches = watches
        self._load = load
        self._lock = threading.RLock()
        self._origins: dict[str, Path] = {}
        self._closed = False
        self.busy = False
        """Whether a change is under way."""

    def close(self) -> None:
        """Let no change come into force any more; does not wait for one that is under way."""
        self._closed = True

    @contextmanager
    def changing(self, wanted: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Wait for other changes to end, and keep them out.

        Raises:
            UnavailableError: the server is stopping.
            CancelledError: `wanted` says that nobody waits for this change any more.
        """
        while not self._lock.acquire(timeout=LOOK_UP_SECONDS):
            self.check_wanted(wanted)
        try:
            self.check_wanted(wanted)
            before, self.busy = self.busy, True
            try:
                yield
            finally:
                self.busy = before
        finally:
            self._lock.release()

    def check_wanted(self, wanted: Callable[[], bool] = lambda: True) -> None:
        """Refuse a change that is about to come into force, if the server is stopping or nobody waits for it.

        Raises:
            UnavailableError, CancelledError: as for `changing`.
        """
        if self._closed:
            raise UnavailableError("the server is stopping; nothing was changed")
        if not wanted():
            raise CancelledError

    def add(
        self,
        path: Path,
        labels: Sequence[str] = (),
        *,
        keep_default: bool = False,
        wanted: Callable[[], bool] = lambda: True,
    ) -> ScoringDetector:
        """Load a bundle beside what is served.

        Args:
            path: bundle directory.
            labels: that its version shall carry.
            keep_default: as for `Registry.add`.
            wanted: asked once more before the bundle serves.

        Raises:
            BundleError: damaged, of another format, or it does not score its golden rows as when built.
            InvalidInputError: a label is unfit, the device does not exist, or its calibration rows cannot honour the
                server's alpha and guarantee.
            ConflictError: its name and version is loaded already.
            DeviceError: the device that was asked for is not there, or failed.
            StateError: its drift state cannot be read.
            CancelledError, UnavailableError: as for `changing`.
        """
        with self.changing(wanted):
            started = time.perf_counter()
            detector = self.build(path)
            self.check_wanted(wanted)
            m = detector.manifest
            self._registry.refuse_loaded(m.name, m.version)
            self.show(detector)
            self._registry.add(detector, labels, keep_default=keep_default)
            self.report(detector, path, started)
        return detector

    def unload(self, name: str, version: str) -> None:
        """Serve a version no longer.

        Raises:
            NotFoundError: no such name or version.
            PreconditionError: it carries a label, or is the only one of its name.
            UnavailableError: the server is stopping.
        """
        with self.changing():
            before = self.loaded(name, version)
            self._registry.remove(name, version)
            if before is not None:
                self.hide(before)
                self.forget(before)

    def loaded(self, name: str, version: str) -> Loaded | None:
        """What is loaded under a name and version."""
        found = self._registry.loaded(name, version)
        return None if found is None else Loaded.of(found)

    def known(self, path: Path, replacing: tuple[str, str] | None = None) -> ScoringDetector | None:
        """The detector that is loaded from a bundle with this very manifest; nothing else is read.

        Args:
            path: bundle directory.
            replacing: name and version that may be loaded from another bundle.

        Raises:
            BundleError: the manifest is missing or damaged.
            ConflictError: its name and version is loaded from another bundle.
        """
        m, digest = bundle.read_manifest(path), bundle.digest(path)
        found = self._registry.loaded(m.name, m.version)
        if found is None or found.digest == digest:
            return found
        if replacing == (m.name, m.version):
            return None
        raise ConflictError(
            f"detector {m.name!r} version {m.version!r} is loaded already, from another bundle: its digest is "
            f"{found.digest[:12]}, that of {path} is {digest[:12]}; give each bundle its own version"
        )

    def origin(self, digest: str) -> Path | None:
        """The path of the bundle that a loaded detector was read from, links resolved."""
        return self._origins.get(digest)

    def note_origin(self, digest: str, path: Path) -> None:
        """Note where the bundle of a loaded detector lies by now."""
        if digest in self._origins:
            self._origins[digest] = path.resolve()

    def build(self, path: Path) -> ScoringDetector:
        """A detector that could serve; nothing is changed.

        Raises:
            BundleError, InvalidInputError, DeviceError: as for `add`.
        """
        load = self._load
        if load is None:
            from softkin.detector import Detector

            load = partial(Detector.load, row_names=self._settings.row_names)
        # Resolved once: a link that is moved meanwhile must not mix two bundles.
        detector = load(path.resolve(), device=self._settings.device, threads=self._settings.threads)
        self.prove(detector)
        return detector

    def prove(self, detector: ScoringDetector) -> None:
        """See whether a detector can honour the server's default rule, and warm it up at the largest batch.

        Raises:
            InvalidInputError: its calibration rows are too few.
            DeviceError: the device failed.
        """
        s, m, alpha = self._settings, detector.manifest, default_alpha(self._settings, detector)
        try:
            detector.rule(alpha=alpha, guarantee=s.guarantee, confidence=s.confidence, smoothed=False)
        except InvalidInputError as e:  # named, because other detectors may honour it
            raise InvalidInputError(e.field, f"{e.message} (detector {m.name!r} version {m.version!r})") from None
        row_bytes = math.prod(m.input_shape) * np.dtype(m.input_dtype).itemsize
        # A batch is made of admitted rows, so it is never larger than what may be pending.
        detector.warm_up(max(1, min(s.max_batch_rows, s.max_pending_rows, s.max_pending_bytes // row_bytes)))

    def show(self, new: ScoringDetector, before: Loaded | None = None) -> None:
        """Begin to watch a detector for drift and to show it in the metrics, instead of `before`.

        Raises:
            StateError: its drift state cannot be read; nothing is changed then.
        """
        m, alpha = new.manifest, default_alpha(self._settings, new)
        watch = self._watches.add(new)
        if before is not None:
            self.hide(before)
        self._metrics.drift_watched(m.name, m.version, partial(watch.report, alpha))
        self._metrics.detector_ready(
            m.name,
            m.version,
            digest=new.digest,
            device=new.device,
            alpha=alpha,
            calibration_rows=m.calibration_size,
            bank_rows=m.bank_size,
        )

    def hide(self, before: Loaded) -> None:
        """Show a detector in the metrics no longer."""
        self._metrics.detector_gone(before.name, before.version, digest=before.digest, device=before.device)

    def forget(self, before: Loaded) -> None:
        """Stop watching a detector that has left the registry, and log that it is unloaded."""
        self._watches.remove(before.digest)
        self._origins.pop(before.digest, None)
        log.info(log_line("unloaded", detector=before.name, version=before.version, digest=before.digest[:12]))
        self.note_fallback()

    def report(self, new: ScoringDetector, path: Path, started: float) -> None:
        """Log and count a detector that serves; `started`: by `time.perf_counter`."""
        self._origins[new.digest] = path.resolve()
        self._metrics.detector_loaded(time.perf_counter() - started)
        fields = {"detector": new.manifest.name, "version": new.manifest.version, "digest": new.digest[:12]}
        log.info(log_line("loaded", **fields, device=new.device, device_asked=self._settings.device))
        self.note_fallback()

    def note_fallback(self) -> None:
        """Show whether device `auto` had to take the CPU for something that is served now."""
        on_cpu = any("cpu" in d.device for d in self._registry)
        fallen = self._settings.device == "auto" and on_cpu and cuda_driver_present()
        self._metrics.device_fallback.set(int(fallen))
