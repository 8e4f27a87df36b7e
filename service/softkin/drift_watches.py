"""The drift watches of a server: one per detector digest, saved to a directory so that a restart goes on."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue

from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from softkin.drift import DEFAULT_LEVEL, MOST_WAITING_ROWS, SLICE_ROWS, DriftReport, DriftWatch
from softkin.errors import NotFoundError, StateError
from softkin.logs import log, log_line
from softkin.scores import Scores
from softkin.scoring_detector import ScoringDetector
from softkin.unfinished_files import written_whole

LOCK = ".lock"
RANKED_TOGETHER = 8 * SLICE_ROWS
"""Rows that wait before the thread that ranks them is woken: a few slices in a row find what they need in the cache."""


class DriftWatches:
    """Starts, feeds, saves and reports the watches.

    Args:
        level: chance of a false alarm that each watch may take, ever.
        folder: where states are kept, made if missing; nothing is kept when None.
        save_seconds: between two saves while `watching`.

    Attributes:
        unsaved: watches whose state could not be written at the last attempt.
    """

    def __init__(self, *, level: float = DEFAULT_LEVEL, folder: Path | None = None, save_seconds: float = 10.0) -> None:
        self._level = level
        self._folder = folder
        self._save_seconds = save_seconds
        self._watches: dict[str, tuple[Path | None, DriftWatch]] = {}
        self._saving = threading.Lock()
        self.unsaved = 0
        self._due: SimpleQueue[DriftWatch | None] = SimpleQueue()
        self._ranking = False

    def add(self, detector: ScoringDetector) -> DriftWatch:
        """Watch a detector, from its saved state where there is one; another digest is another watch.

        One that is watched already goes on.

        Raises:
            StateError: the saved state cannot be read or is of another detector; names the file and the remedy.
        """
        if (known := self._watches.get(detector.digest)) is not None:
            return known[1]
        watch = DriftWatch(detector.calibration_scores, level=self._level)
        m, file = detector.manifest, None
        if self._folder is not None:
            file = self._folder / f"{m.name}-{m.version}-{detector.digest[:16]}.safetensors"
            _restore(watch, file)
        self._watches = {**self._watches, detector.digest: (file, watch)}
        return watch

    def remove(self, digest: str) -> None:
        """Watch a detector no longer; its state is saved once more."""
        file, watch = self._watches[digest]
        self._watches = {k: kept for k, kept in self._watches.items() if k != digest}
        with self._saving:
            _save(file, watch)

    def observe(self, scores: Scores) -> None:
        """Add the rows of one answer to the watch of the detector that gave it, unless that has been removed.

        They are ranked in another thread while `watching`: callers and the device do not wait for it.
        """
        if found := self._watches.get(scores.budget.digest):
            watch = found[1]
            waiting = watch.note(scores.outlier_score)
            if waiting >= (MOST_WAITING_ROWS if self._ranking else RANKED_TOGETHER):
                watch.catch_up()
            elif waiting >= RANKED_TOGETHER > waiting - len(scores):  # only as it is passed: once for all that wait
                self._due.put(watch)

    def report(self, detector: ScoringDetector, alpha: float) -> DriftReport:
        """What the watch of a detector has seen; `alpha`: at which to count recent flags.

        Raises:
            NotFoundError: the detector is watched no longer.
        """
        found = self._watches.get(detector.digest)
        if found is None:
            m = detector.manifest
            raise NotFoundError(f"detector {m.name!r} version {m.version!r} has just been unloaded")
        return found[1].report(alpha)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Rank rows in a thread of its own; hold the directory, save every few seconds, and once more at the end.

        Raises:
            StateError: the directory cannot be written, or another process holds it.
        """
        with ExitStack() as stack:
            if self._folder is not None:
                stack.enter_context(_held(self._folder))
                stack.callback(self.save)
                ended = threading.Event()
                stack.enter_context(_in_thread("drift-state", lambda: self._save_until(ended), stop=ended.set))
            stack.enter_context(_in_thread("drift", self._rank, stop=lambda: self._due.put(None)))
            self._ranking = True
            try:
                yield
            finally:
                self._ranking = False

    def save(self) -> None:
        """Write every watch's state, each whole or not at all; failures, and their end, are logged."""
        with self._saving:
            before, self.unsaved = self.unsaved, sum(not _save(file, watch) for file, watch in self._watches.values())
        if before and not self.unsaved:
            log.info(log_line("drift_state_saved", folder=self._folder))

    def _rank(self) -> None:
        while (watch := self._due.get()) is not None:
            try:
                watch.catch_up()
            except Exception as e:  # memory may be short; without this thread the device would wait
                log.error(log_line("drift_rows_lost", error=e))

    def _save_until(self, ended: threading.Event) -> None:
        while not ended.wait(self._save_seconds):
            self.save()


@contextmanager
def _in_thread(name: str, work: Callable[[], None], *, stop: Callable[[], object]) -> Iterator[None]:
    """Run `work` in a thread while the block runs; then `stop` makes it return."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join()


def _save(file: Path | None, watch: DriftWatch) -> bool:
    """Whether nothing is left to write."""
    if file is None:
        return True
    try:
        with written_whole(file) as temporary:
            temporary.write_bytes(save(watch.state()))
    except Exception as e:  # whatever it is: it must end neither the thread that saves nor an unload
        log.error(log_line("drift_state_not_saved", file=file, error=e))
        return False
    return True


def _restore(watch: DriftWatch, file: Path) -> None:
    if not file.exists():
        return
    try:
        watch.restore(load_file(file))
    except (OSError, SafetensorError, ValueError) as e:
        raise StateError(f"{file}: cannot go on from this drift state ({e}); remove the file to begin anew") from None


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a directory for this server: two on one directory would overwrite each other's evidence."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as e:
        raise StateError(f"{folder}: cannot be written ({e.strerror}); choose another --drift-state") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(f"{folder}: another server keeps its drift state here; give each its own") from None
        except OSError as e:
            raise StateError(
                f"{folder}: cannot be locked ({e.strerror}); choose another --drift-state, on a file system with locks"
            ) from None
        for unfinished in folder.glob(".*.safetensors.*"):  # of a server that was killed while it saved
            unfinished.unlink(missing_ok=True)
        yield
