"""Reads the configured bundles, when the server starts and again when it is told to."""

from __future__ import annotations

import threading
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue

from softkin import bundle
from softkin.errors import BundleError, ConflictError, PreconditionError, SoftkinError
from softkin.loading import Loaded, Loader
from softkin.logs import log, log_line
from softkin.metrics import Metrics
from softkin.registry import Registry, ScoringDetector


class Reloader:
    """Keeps what is served equal to what the configured paths hold.

    A path whose manifest has not changed is left alone. What a path holds newly takes the place of what came from it
    before: its labels, and its turn as the default; with another name, it comes beside it. What another path holds now
    is served on.

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
        drop_first: bool = False,
        release_seconds: float = 30.0,
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

    def load(self, wanted: Callable[[], bool] = lambda: True) -> bool:
        """Load every path, for the start of a server.

        Args:
            wanted: asked before every path.

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
        return True

    def start(self) -> None:
        """Begin to do what is requested, and what has been."""
        self._thread.start()

    def request(self) -> None:
        """Have every path read again, soon. Returns at once; may be called from a signal handler.

        What is requested while paths are being read leads to one more reading, however often.
        """
        self._requests.put(True)  # SimpleQueue.put may interrupt itself; a lock taken in a handler can deadlock

    def close(self) -> None:
        """Begin no more; does not wait for what is under way."""
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
                self._loader.lies_at(held.digest, path)
                return False
            self._held[path] = Loaded.of(self._exchange(path, held.name, held.version, labels))
        return True

    def _exchange(self, path: Path, name: str, version: str, labels: tuple[str, ...]) -> ScoringDetector:
        """Serve what the path holds in the place of a version that may be gone, or stays because another path holds it.

        `labels` are those it had before any path was read: what it got from another path since stays with it.
        """
        before = self._loader.loaded(name, version)
        stays = before is not None and self._held_elsewhere(before, path)
        goes, moved = (None, labels) if stays else (before, None)
        path = path.resolve()  # once: a link that is moved meanwhile must not mix two bundles
        known = self._loader.known(path, replacing=None if stays else (name, version))
        if known is not None:
            if before != Loaded.of(known) and self._registry.has_place(name, version):
                self._give_way(name, version, before, known, moved)
            return known
        manifest = bundle.read_manifest(path)
        if manifest.name == name and self._registry.has_place(name, version):
            return self._replace(path, goes, version, moved)
        new = self._loader.add(path, keep_default=True)
        if not stays and self._registry.has_place(name, version):
            self._unload_if_free(name, version)
        return new

    def _held_elsewhere(self, before: Loaded, path: Path) -> bool:
        """Whether another path holds what this one held before: by links that are moved on, or exchanged."""
        return any(self._digest(other) == before.digest for other in self._paths if other != path)

    def _digest(self, path: Path) -> str:
        try:
            return bundle.digest(path)
        except BundleError:  # it goes on serving what it held; its own turn says what is wrong
            return self._held[path].digest

    def _replace(
        self, path: Path, before: Loaded | None, version: str, moved: tuple[str, ...] | None
    ) -> ScoringDetector:
        started = time.perf_counter()
        digest = bundle.digest(path)
        origin = None if before is None or not self._drop_first else self._loader.origin(before.digest)
        if before is not None and origin is not None:
            bundle.verify_files(path)  # what can be refused without memory costs nobody an answer
            self._withdraw(before)
        new = None
        try:
            new = self._loader.build(path)
            if new.digest != digest:
                raise BundleError(f"{path}: was replaced while it was being read; reload again")
            if origin is None:
                self._loader.go_on()
            self._loader.describe(new, before)
        except BaseException as e:
            if before is not None and origin is not None:
                new = None
                _clear_frames(e)  # they hold what has failed, and there is no room for both
                self._restore(before, origin)
            raise
        self._registry.exchange(version, new, labels=moved)
        self._loader.report(new, path, started)
        if before is not None:
            self._loader.forget(before)
        return new

    def _give_way(
        self, name: str, version: str, before: Loaded | None, known: ScoringDetector, moved: tuple[str, ...] | None
    ) -> None:
        """What the path holds is loaded already, from elsewhere; what it held before may be withdrawn."""
        if known.manifest.name == name:
            self._registry.exchange(version, known, labels=moved)
            if moved is None and before is not None:
                self._loader.undescribe(before)
                self._loader.forget(before)
        elif moved is None:
            self._unload_if_free(name, version)

    def _unload_if_free(self, name: str, version: str) -> None:
        try:
            self._loader.unload(name, version)
        except PreconditionError as e:
            log.warning(log_line("kept", detector=name, version=version, reason=e))

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
            self._loader.undescribe(before)
            self._loader.forget(before)
        else:
            self._loader.describe(old, before)  # auto may have found another device this time
            self._registry.exchange(before.version, old)
            self._loader.note_fallback()


def _clear_frames(error: BaseException | None) -> None:
    """Let go what the functions hold that an error, or what it comes from, has left."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
