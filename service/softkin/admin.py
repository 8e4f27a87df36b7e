"""The admin service: what operators may do to a running server. Its port is in `admin_port`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from softkin import bundle
from softkin.errors import (
    BundleError,
    InvalidInputError,
    OverloadedError,
    PreconditionError,
    StateError,
)
from softkin.loading import Loader
from softkin.logs import log, log_line
from softkin.metrics import Metrics
from softkin.registry import STABLE, Registry, check_label
from softkin.scoring_detector import ScoringDetector
from softkin.v1 import admin_pb2 as pb
from softkin.v1 import admin_pb2_grpc as pb_grpc
from softkin.v1 import outlier_pb2

CHANGES = 4
"""Changes taken in at a time: one is made, and the others wait for it, each in a thread of its own."""
RETRY_AFTER_SECONDS = 5.0
"""What a refused caller is told to wait: a bundle is read in less, unless it is a large one."""


class AdminServicer(pb_grpc.DetectorAdminServiceServicer):
    """Changes what is served. Errors become statuses in `CallInterceptor`.

    Args:
        loader: makes the changes, one at a time.
        registry: what is served.
        metrics: where loads are counted.
        info: describes a detector.
        root: directory that bundles must lie in; None refuses every load.
    """

    def __init__(
        self,
        loader: Loader,
        registry: Registry,
        metrics: Metrics,
        info: Callable[[ScoringDetector], outlier_pb2.DetectorInfo],
        root: Path | None,
    ) -> None:
        self._loader = loader
        self._registry = registry
        self._metrics = metrics
        self._info = info
        self._root = root
        self._places = threading.Semaphore(CHANGES)

    def LoadDetector(  # noqa: N802
        self, request: pb.LoadDetectorRequest, context: grpc.ServicerContext
    ) -> pb.LoadDetectorResponse:
        """Load a bundle, unless the same one is loaded, and give it labels."""
        path = inside(self._root, request.path)
        labels = [check_label(label, "labels") for label in request.labels]
        with self._place(), self._changing(context):
            return pb.LoadDetectorResponse(detector=self._info(self._counted(path, labels, context)))

    def _counted(self, path: Path, labels: list[str], context: grpc.ServicerContext) -> ScoringDetector:
        """The detector of a bundle, counted as a reload and logged where it fails; what was refused earlier is none."""
        result = "failed"
        try:
            detector = self._known(path, labels)
            if detector is not None:
                result = "unchanged"
                return detector
            detector = self._load(path, labels, context)
            result = "loaded"
            return detector
        except Exception as e:
            # The caller is told; an alert on what is counted asks somebody else, who has the log.
            log.error(log_line("reload_failed", path=path, error=e))
            if isinstance(e, BundleError) and not path.is_dir():
                raise BundleError(f"{e}; a path is relative to the bundle root, {self._root}") from None
            raise
        finally:
            self._metrics.reloaded(result)

    def UnloadDetector(  # noqa: N802
        self, request: pb.UnloadDetectorRequest, context: grpc.ServicerContext
    ) -> pb.UnloadDetectorResponse:
        """Stop serving a version."""
        _require(detector=request.detector, version=request.version)
        with self._place(), self._changing(context):
            self._loader.unload(request.detector, request.version)
        return pb.UnloadDetectorResponse()

    def SetLabel(self, request: pb.SetLabelRequest, context: grpc.ServicerContext) -> pb.SetLabelResponse:  # noqa: N802
        """Move a label."""
        _require(detector=request.detector, version=request.version)
        check_label(request.label)
        with self._place(), self._changing(context):
            previous = self._set_label(request.detector, request.version, request.label, force=request.force)
        return pb.SetLabelResponse(previous_version=previous)

    def RemoveLabel(  # noqa: N802
        self, request: pb.RemoveLabelRequest, context: grpc.ServicerContext
    ) -> pb.RemoveLabelResponse:
        """Take a label away."""
        _require(detector=request.detector)
        check_label(request.label)
        with self._place(), self._changing(context):
            previous = self._registry.remove_label(request.detector, request.label)
            log.info(log_line("unlabelled", detector=request.detector, label=request.label, previous=previous))
        return pb.RemoveLabelResponse(previous_version=previous)

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Hold one of the places for changes under way.

        Raises:
            OverloadedError: all are taken.
        """
        if not self._places.acquire(blocking=False):
            raise busy(
                f"{CHANGES} changes are under way, as many as may be: one is made, and the others wait for it; see "
                "what is loaded (ListDetectors, or softkin admin list)"
            )
        try:
            yield
        finally:
            self._places.release()

    @contextmanager
    def _changing(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Keep other changes out; and tell operators what is wrong with a bundle, unlike callers of the score port."""
        try:
            with self._loader.changing(context.is_active):
                yield
        except (BundleError, StateError) as e:
            raise PreconditionError(str(e)) from e

    def _known(self, path: Path, labels: list[str]) -> ScoringDetector | None:
        """The same bundle, if it is loaded, with its labels moved to it."""
        found = self._loader.known(path)
        if found is None:
            return None
        for label in sorted(labels, key=lambda label: label != STABLE):  # that one first: it may be refused
            self._set_label(found.manifest.name, found.manifest.version, label)
        return found

    def _set_label(self, name: str, version: str, label: str, *, force: bool = False) -> str:
        previous = self._registry.set_label(name, version, label, force=force)
        _log_label(name, version, label, previous=previous or "none", force=force)
        return previous

    def _load(self, path: Path, labels: list[str], context: grpc.ServicerContext) -> ScoringDetector:
        before = self._labelled()
        try:
            detector = self._loader.add(path, labels, keep_default=True, wanted=context.is_active)
        except InvalidInputError as e:
            # The request is valid, but the bundle does not suit this server's alpha, guarantee or device.
            raise PreconditionError(str(e)) from e
        for (name, label), version in self._labelled().items():
            if before.get((name, label)) != version:  # also 'stable', by which what serves goes on
                _log_label(name, version, label, previous=before.get((name, label), "none"))
        return detector

    def _labelled(self) -> dict[tuple[str, str], str]:
        """The version of each name and label."""
        labels_of = self._registry.labels_of
        return {(d.manifest.name, label): d.manifest.version for d in self._registry for label in labels_of(d)}


def inside(root: Path | None, path: str) -> Path:
    """The bundle directory that a caller names, links resolved.

    Args:
        root: directory that it must lie in, with every file of it.
        path: relative to the root.

    Raises:
        PreconditionError: there is no root.
        InvalidInputError: the path is empty, or it leaves the root, directly or by a link.
    """
    if root is None:
        raise PreconditionError(
            "this server loads no bundles: it runs without bundle_root; start it with --bundle-root DIR"
        )
    if not path or "\0" in path:
        raise InvalidInputError("path", f"got {path[:80]!r}; give a bundle directory, relative to the bundle root")
    real_root = os.path.realpath(root)
    found = os.path.realpath(os.path.join(real_root, path))
    for file in (found, *(os.path.realpath(os.path.join(found, name)) for name in bundle.FILES)):
        if os.path.commonpath([real_root, file]) != real_root:
            raise InvalidInputError(
                "path", f"got {path[:80]!r}, which leaves the bundle root; neither '..' nor a link may lead out of it"
            )
    return Path(found)


def busy(limit: str) -> OverloadedError:
    """The refusal of a call that finds as many under way as may be; `limit` says of what."""
    return OverloadedError(f"{limit}; retry after {RETRY_AFTER_SECONDS:g} s", RETRY_AFTER_SECONDS)


def _log_label(name: str, version: str, label: str, **more: object) -> None:
    log.info(log_line("labelled", detector=name, version=version, label=label, **more))


def _require(**fields: str) -> None:
    for name, value in fields.items():
        if not value:
            raise InvalidInputError(name, "empty; the admin service takes no default, name it")
