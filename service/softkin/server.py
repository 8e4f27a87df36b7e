"""The server: ports, health, reflection, drain."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from softkin.admin import AdminServicer
from softkin.admin_port import AdminListener
from softkin.call_threads import CallThreads
from softkin.channel_options import channel_options
from softkin.drift_watches import DriftWatches
from softkin.errors import SoftkinError
from softkin.interceptors import CallInterceptor
from softkin.listening import cannot_listen, check_address, host_port
from softkin.loading import Load, Loader
from softkin.metrics import Metrics
from softkin.metrics_port import open_metrics_port
from softkin.places import Places
from softkin.registry import Registry
from softkin.reloading import Reloader
from softkin.scoring import ScoringPath
from softkin.security import Security
from softkin.servicer import OutlierServicer
from softkin.settings import ServerSettings
from softkin.tracing import Tracing
from softkin.traffic import Traffic
from softkin.v1 import outlier_pb2 as pb
from softkin.v1 import outlier_pb2_grpc as pb_grpc
from softkin.watched_health import LAST_WORDS_SECONDS, WatchedHealth

SERVICE = pb.DESCRIPTOR.services_by_name["OutlierService"].full_name
INFERENCE_SERVICE = "inference.GRPCInferenceService"
SCORING = (f"/{SERVICE}/Score", f"/{INFERENCE_SERVICE}/ModelInfer")
"""Methods whose calls are refused unread while the gate is full."""
UNWRAPPED = (health.SERVICE_NAME, reflection.SERVICE_NAME)
READY = SERVICE
"""Name under which the health service tells readiness; the empty name tells liveness."""

LONGER_THAN_GRACE_SECONDS = 60.0
"""How much longer gRPC's own grace period is: if it ended first, the calls that it cancels could not be counted."""
SPARE_THREADS = 16
"""Threads that no request and no stream can hold, `MORE_CALLS` aside: they refuse at once, under any load."""
OTHER_THREADS = 12
"""Threads beside those of calls and workers: for ports, the shadow, drift watches, reloads and the shutdown."""


class Server:
    """A server with its ports.

    Live from `listen`, ready from `make_ready`; `start` does both. `stop` drains and may be called from any thread.

    Args:
        settings: limits, ports, drain times.
        registry: detectors to serve beside the bundles; may be filled between `listen` and `make_ready`.
        metrics: shown on the metrics port.
        load: makes detectors of the bundles; `Detector.load` when None.
    """

    def __init__(
        self, settings: ServerSettings, registry: Registry, metrics: Metrics, load: Load | None = None
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._metrics = metrics
        self._security = Security(settings, metrics)
        self._watches = DriftWatches(
            level=settings.drift_level, folder=settings.drift_state, save_seconds=settings.drift_save_seconds
        )
        if settings.drift_state is not None:
            metrics.drift_saving_watched(lambda: self._watches.unsaved)
        threads = settings.max_pending_requests + settings.max_streams + SPARE_THREADS
        self._threads = CallThreads(threads, "rpc", beside=settings.workers + OTHER_THREADS)
        self._threads.start_all()
        services = (SERVICE, INFERENCE_SERVICE) if settings.inference_protocol else (SERVICE,)
        self._traffic = Traffic()
        self._tracing = Tracing(services) if settings.tracing else None
        self._path = ScoringPath(
            settings,
            registry,
            metrics,
            self._watches,
            callers=lambda: self._traffic.unary,
            describe=None if self._tracing is None else self._tracing.describe,
        )
        self._servicer = OutlierServicer(settings, registry, metrics, self._path, self._watches)
        self._loader = Loader(settings, registry, metrics, self._watches, load)
        self.reloader = Reloader(
            settings.bundles,
            self._loader,
            registry,
            metrics,
            drop_first=settings.reload_policy == "resource",
            release_seconds=settings.drain_grace_seconds,
        )
        self._saving = ExitStack()
        self._health = WatchedHealth(self._threads.unwrapped_places)
        self._is_ready = partial(self._health.serving, READY)
        metrics.ready.set_function(self._is_ready)
        self._grpc = self._grpc_server(services)
        self._admin: AdminListener | None = None
        if settings.admin_port is not None:
            admin = AdminServicer(self._loader, registry, metrics, self._servicer.info, settings.bundle_root)
            self._admin = AdminListener(settings, metrics, self._security, admin, self._servicer)
        self._hurry = threading.Event()
        self._stopped = threading.Event()
        self._close_metrics: Callable[[], None] = lambda: None
        self.port = self.metrics_port = self.admin_port = 0
        self.abandoned_requests = 0
        """Requests that were under way when `stop` lost patience; their callers got no answer."""

    def _grpc_server(self, services: Sequence[str]) -> grpc.Server:
        """The server of the port of scores, with all its services and what their calls pass through."""
        calls = CallInterceptor(
            self._metrics,
            services,
            UNWRAPPED,
            traffic=self._traffic,
            max_message_bytes=self._settings.max_message_bytes,
            gated=SCORING,
            gate=lambda: self._path.admission.refuse_full(self._traffic.unary),
        )
        spans = [] if self._tracing is None else [self._tracing.interceptor]
        server = grpc.server(
            self._threads,  # type: ignore[arg-type]  # of a pool gRPC uses `submit` alone
            interceptors=[*spans, calls, *self._security.interceptors],
            options=channel_options(self._settings),
        )
        pb_grpc.add_OutlierServiceServicer_to_server(self._servicer, server)  # type: ignore[no-untyped-call]
        if self._settings.inference_protocol:
            self._add_inference_protocol(server)
        self._health.add_to(server)
        if self._settings.reflection:
            reflections = _Reflection((*services, *UNWRAPPED), self._threads.unwrapped_places)
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflections, server)
        return server

    @property
    def pending_requests(self) -> int:
        """Requests waiting or being scored."""
        return self._path.admission.pending_requests

    @property
    def changing(self) -> bool:
        """Whether a bundle is being loaded, or another change is under way."""
        return self._loader.busy

    def start(self) -> None:
        """Open the ports and serve the registry's detectors.

        Raises:
            SoftkinError: a port is taken, a bundle does not load, or alpha is out of a detector's reach.
        """
        try:
            self.listen()
            self.make_ready()
        except BaseException:
            self.stop_now()
            raise

    def listen(self) -> None:
        """Open the ports: health answers, live but not ready.

        Raises:
            SoftkinError: a port is taken.
        """
        s = self._settings
        self._health.set(READY, health_pb2.HealthCheckResponse.NOT_SERVING)
        check_address(s.host, s.metrics_port, "--metrics-port")
        if s.admin_port is not None:  # before a port is opened: gRPC gives none back of a server that was never started
            check_address(s.admin_host, s.admin_port, "--admin-port")
        try:
            metrics_port, close = open_metrics_port(s.host, s.metrics_port, self._metrics.registry)
        except OSError as e:
            raise cannot_listen(s.host, s.metrics_port, "--metrics-port", e) from None
        try:
            self.port = self._add_port(self._grpc, s.host, s.port, "--port")
            if self._admin is not None and s.admin_port is not None:
                self.admin_port = self._add_port(self._admin.server, s.admin_host, s.admin_port, "--admin-port")
        except SoftkinError:
            close()
            raise
        self._close_metrics = close
        self.metrics_port = metrics_port
        self._grpc.start()

    def make_ready(self, wanted: Callable[[], bool] = lambda: True) -> bool:
        """Load every bundle and warm every detector up, then report SERVING.

        Args:
            wanted: asked before every bundle, and after the last.

        Returns:
            False if `wanted` said no: the server is not ready then.

        Raises:
            BundleError: a bundle does not load.
            InvalidInputError: a detector's calibration rows cannot honour the server's alpha and guarantee.
            StateError: the drift state cannot be kept or read.
        """
        with self._loader.changing():
            if self._admin is not None:
                self._admin.start()  # not before: a change that came first would get in the way of the bundles
            self._saving.enter_context(self._watches.watching())
            for detector in self._registry:
                self._loader.prove(detector)
                self._loader.show(detector)
            if not self.reloader.load(wanted):
                return False
            self._loader.note_fallback()
            self._path.ready = True
        self._health.set(READY, health_pb2.HealthCheckResponse.SERVING)
        self.reloader.start()
        return True

    def stop(self) -> None:
        """Report NOT_SERVING, wait the drain delay, refuse new calls, finish those in flight, close the ports."""
        self._health.enter_graceful_shutdown()
        self._loader.close()
        self.reloader.close()
        self._hurry.wait(self._settings.drain_delay_seconds)
        grace = 0 if self._hurry.is_set() else self._settings.drain_grace_seconds
        self._traffic.refuse()
        grace = self._traffic.settle(grace, self._hurry.wait)
        self._health.end_watches()
        ended = self._closing(grace + LONGER_THAN_GRACE_SECONDS)
        last_words = min(grace, LAST_WORDS_SECONDS)
        if not ended(last_words):
            self._health.cancel_watches()
            if not ended(grace - last_words):
                self._abandon()
        self._threads.shutdown(wait=False)
        self._health.close()
        self._path.close()
        if self._tracing is not None:
            self._tracing.close()
        if self._admin is not None:
            self._admin.stop()
        self._close_metrics()
        self._close_metrics = lambda: None
        self._saving.close()
        self._stopped.set()

    def stop_now(self) -> None:
        """Cancel what is in flight; a `stop` that is under way in another thread ends at once."""
        self._hurry.set()
        self.stop()

    def _add_port(self, server: grpc.Server, host: str, port: int, flag: str) -> int:
        check_address(host, port, flag)
        try:
            return self._security.add_port(server, host_port(host, port))
        except RuntimeError:
            raise cannot_listen(host, port, flag) from None

    def _add_inference_protocol(self, server: grpc.Server) -> None:
        # Imported where it is wanted, because a process that holds these messages cannot import tritonclient.
        from softkin.inference import grpc_service_pb2_grpc
        from softkin.oip import InferenceServicer

        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(  # type: ignore[no-untyped-call]
            InferenceServicer(self._settings, self._registry, self._path, self._is_ready), server
        )

    def _closing(self, seconds: float) -> Callable[[float], bool]:
        """Close gRPC's ports; returns a function that waits so many seconds and says whether all calls have ended."""
        try:
            return self._grpc.stop(seconds).wait
        except RuntimeError:  # no thread for gRPC's own grace period is to be had; the ports close all the same
            return lambda seconds: not self._grpc.wait_for_termination(seconds)

    def _abandon(self) -> None:
        # Counted first, because computations of cancelled requests stop at once. A request that has been computed has
        # left the gate, but its call is under way until the answer is sent: so the larger count is right.
        self.abandoned_requests = max(self.abandoned_requests, self.pending_requests, self._traffic.unary)
        self._grpc.stop(None).wait()

    def wait(self) -> None:
        """Block until stopped."""
        self._stopped.wait()


class _Reflection(reflection.ReflectionServicer):  # type: ignore[misc]  # it ships no types
    """Reflection in bounded places: its calls stay open as long as callers please, in threads that health needs too."""

    def __init__(self, services: Iterable[str], places: Places) -> None:
        super().__init__(services)
        self._places = places

    def ServerReflectionInfo(  # noqa: N802
        self, requests: Iterator[reflection_pb2.ServerReflectionRequest], context: grpc.ServicerContext
    ) -> Iterator[reflection_pb2.ServerReflectionResponse]:
        with self._places.hold(context):
            yield from super().ServerReflectionInfo(requests, context)
