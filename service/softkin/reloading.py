"""Reads the configured bundles, when the server starts and again when it is told to."""

from __future__ import annotations

import threading
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from softkin import bundle
from softkin.errors import BundleError, ConflictError, PreconditionError, SoftkinError
from softkin.loading import Loaded, Loader
from softkin.logs import log, log_line
from softkin.metrics import Metrics
from softkin.registry import Registry
from softkin.scoring_detector import ScoringDetector


class _Former(NamedTuple):
    """What a path held before it was read again."""

    name: str
    version: str
    loaded: Loaded | None
    """None where that version is loaded no longer, or withdrawn."""
    stays: bool
    """Whether another path holds it now, so that it is served on."""
    labels: tuple[str, ...]
    """What it carried before any path was read: labels that it got from another path since are not this one's."""

    @property
    def moved(self) -> tuple[str, ...] | None:
        """Labels that move to what the path holds now, as `Registry.exchange` takes them; None: all of them."""
        return self.labels if self.stays else None

    @property
    def goes(self) -> Loaded | None:
        """What is to be served no longer, if there is something."""
        return None if self.stays else self.loaded


class Reloader:
    """Keeps what is served equal to what the configured paths hold.

    A path whose manifest has not changed is left alone. A new bundle takes the place of the one that its path held
    before: it gets its labels, and its turn as the default. One of another name is loaded beside the others. What
    another path holds by now goes on being served.

    Args:
        paths: bundle directories.
        loader: changes what is served.
        registry: what is served.
        metrics: where reloads are counted.
        drop_first: whether the old version's memory is given back before the new one is loaded.
        release_seconds: how long to wait then for requests that the old version still has in flight.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        loader: Loader,
        registry: Registry,
        metrics: Metrics,
        *,
        drop_first: bool,
        release_seconds: float,
    ) -> None:
        self._loader = loader
        self._registry = registry
        self._metrics = metrics
        self._drop_first = drop_first
        self._release_seconds = release_seconds
        self._paths = tuple(paths)
        self._held: dict[Path, Loaded] = {}
        self._requests: SimpleQueue[bool] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="reload", daemon=True)

    def load(self, wanted: Callable[[], bool]) -> bool:
        """Load every path, for the start of a server.

        Args:
            wanted: asked before every path, and after the last.

        Returns:
            False if `wanted` said no.

        Raises:
            SoftkinError: as from `Loader.add`; two bundles of one name and version, by the path of the second.
        """
        for path in self._paths:
            if not wanted():
                return False
            try:
                self._held[path] = Loaded.of(self._loader.add(path))
            except ConflictError as e:
                raise ConflictError(f"{path}: {e}") from None
        return wanted()

    def start(self) -> None:
        """Begin to serve requests, those included that have been made already."""
        self._thread.start()

    def request(self) -> None:
        """Have every path read again, soon. Returns at once; may be called from a signal handler.

        What is requested while paths are being read leads to one more reading, however often.
        """
        self._requests.put(True)  # SimpleQueue.put may interrupt itself; a lock taken in a handler can deadlock

    def close(self) -> None:
        """Begin no further reload; does not wait for one that is under way."""
        self._requests.put(False)

    def reload(self) -> None:
        """Read every path again; what fails is logged and counted, and the others go on."""
        log.info(log_line("reloading", bundles=len(self._paths)))
        counts = dict.fromkeys(("loaded", "unchanged", "failed"), 0)
        labels = {path: self._labels(held) for path, held in self._held.items()}
        for path in self._paths:
            try:
                result = "loaded" if self._reload(path, labels[path]) else "unchanged"
            except Exception as e:
                result = "failed"
                log.error(log_line("reload_failed", path=path, error=e), exc_info=not isinstance(e, SoftkinError))
            self._metrics.reloaded(result)
            counts[result] += 1
        log.info(log_line("reloaded", **counts))

    def _work(self) -> None:
        while self._requests.get():
            while not self._requests.empty():
                if not self._requests.get():
                    return
            self.reload()

    def _labels(self, held: Loaded) -> tuple[str, ...]:
        found = self._registry.loaded(held.name, held.version)
        return () if found is None else self._registry.labels_of(found)

    def _reload(self, path: Path, labels: tuple[str, ...]) -> bool:
        held = self._held[path]
        with self._loader.changing():
            if bundle.digest(path) == held.digest and not self._registry.withdrawn(held.name, held.version):
                self._loader.note_origin(held.digest, path)
                return False
            loaded = self._loader.loaded(held.name, held.version)
            stays = loaded is not None and self._held_elsewhere(loaded, path)
            former = _Former(held.name, held.version, loaded, stays, labels)
            # Resolved once: a link that is moved meanwhile must not mix two bundles.
            self._held[path] = Loaded.of(self._exchange(path.resolve(), former))
        return True

    def _exchange(self, path: Path, former: _Former) -> ScoringDetector:
        """Serve what the path holds now, in the place of what it held if that has one."""
        version = former.name, former.version
        known = self._loader.known(path, replacing=None if former.stays else version)
        if known is not None:
            if former.loaded != Loaded.of(known) and self._registry.has_place(*version):
                self._give_way(former, known)
            return known
        if bundle.read_manifest(path).name == former.name and self._registry.has_place(*version):
            return self._replace(path, former)
        new = self._loader.add(path, keep_default=True)
        if not former.stays and self._registry.has_place(*version):
            self._unload_if_free(former)
        return new

    def _held_elsewhere(self, loaded: Loaded, path: Path) -> bool:
        """Whether another path holds now what this one held: links may have been moved on, or exchanged."""
        return any(self._digest(other) == loaded.digest for other in self._paths if other != path)

    def _digest(self, path: Path) -> str:
        try:
            return bundle.digest(path)
        except BundleError:  # it goes on serving what it held; its own turn says what is wrong
            return self._held[path].digest

    def _replace(self, path: Path, former: _Former) -> ScoringDetector:
        """Load what the path holds, and serve it in the place of a version of the same name."""
        before = former.goes
        started = time.perf_counter()
        digest = bundle.digest(path)
        origin = None if before is None or not self._drop_first else self._loader.origin(before.digest)
        if before is not None and origin is not None:
            bundle.verify_files(path)  # what is refused before the withdrawal costs nobody an answer
            self._withdraw(before)
        new = None
        try:
            new = self._loader.build(path)
            if new.digest != digest:
                raise BundleError(f"{path}: was replaced while it was being read; reload again")
            if origin is None:
                self._loader.check_wanted()
            self._loader.show(new, before)
        except BaseException as e:
            if before is not None and origin is not None:
                new = None
                _clear_frames(e)  # which hold the new one, and memory may have no room for both
                self._restore(before, origin)
            raise
        self._registry.exchange(former.version, new, labels=former.moved)
        self._loader.report(new, path, started)
        if before is not None:
            self._loader.forget(before)
        return new

    def _give_way(self, former: _Former, known: ScoringDetector) -> None:
        """Let what the path held make room for a detector that is loaded already, from elsewhere."""
        if known.manifest.name == former.name:
            self._registry.exchange(former.version, known, labels=former.moved)
            if former.goes is not None:
                self._loader.hide(former.goes)
                self._loader.forget(former.goes)
        elif not former.stays:
            self._unload_if_free(former)

    def _unload_if_free(self, former: _Former) -> None:
        """Unload it, unless it carries a label or is the last one of its name: then it stays, and the log says so."""
        try:
            self._loader.unload(former.name, former.version)
        except PreconditionError as e:
            log.warning(log_line("kept", detector=former.name, version=former.version, reason=e))

    def _withdraw(self, before: Loaded) -> None:
        """Give the memory of a version back, once its last request in flight has ended."""
        released = threading.Event()
        weakref.finalize(self._registry.withdraw(before.name, before.version), released.set).atexit = False
        if not released.wait(self._release_seconds):
            fields = {"detector": before.name, "version": before.version, "seconds": self._release_seconds}
            log.warning(log_line("not_released", **fields))

    def _restore(self, before: Loaded, origin: Path) -> None:
        try:
            old = self._loader.build(origin)
            if old.digest != before.digest:
                raise BundleError(f"{origin}: holds another bundle now, with digest {old.digest[:12]}")
        except Exception as e:
            # Its place stays withdrawn, so that callers are told to retry, until a reload succeeds.
            log.exception(log_line("not_restored", detector=before.name, version=before.version, reason=e))
            self._loader.hide(before)
            self._loader.forget(before)
        else:
            self._loader.show(old, before)  # auto may have found another device this time
            self._registry.exchange(before.version, old)
            self._loader.note_fallback()


def _clear_frames(error: BaseException | None) -> None:
    """Clear the local variables of the functions that an error, or the error behind it, has passed through."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
