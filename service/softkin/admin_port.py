"""The port of the admin service: its threads, and what guards it."""

from __future__ import annotations

import grpc
from grpc_reflection.v1alpha import reflection

from softkin.admin import AdminServicer, busy
from softkin.call_threads import CallThreads
from softkin.channel_options import channel_options
from softkin.interceptors import CallInterceptor
from softkin.metrics import Metrics
from softkin.security import Security
from softkin.servicer import OutlierServicer
from softkin.settings import ServerSettings
from softkin.traffic import Traffic
from softkin.v1 import admin_pb2 as pb
from softkin.v1 import admin_pb2_grpc as pb_grpc
from softkin.v1 import outlier_pb2

SERVICE = pb.DESCRIPTOR.services_by_name["DetectorAdminService"].full_name
OUTLIER_SERVICE = outlier_pb2.DESCRIPTOR.services_by_name["OutlierService"].full_name
GATED = (
    *(f"/{SERVICE}/{method.name}" for method in pb.DESCRIPTOR.services_by_name["DetectorAdminService"].methods),
    f"/{OUTLIER_SERVICE}/ListDetectors",
)
"""Every method of the port."""
MAX_CALLS = 16
"""Calls under way at a time, changes among them: reads find a thread beside all changes and beside silent calls."""
SPARE_THREADS = 4
"""Threads for refusals, which wait for nobody."""
LATER_THREADS = 4
"""Threads that the server starts after this port: for drift watches, reloads and the shutdown."""


class AdminListener:
    """The port of the admin service, guarded like that of the scores; `ListDetectors` answers there too.

    Args:
        settings: what bounds its callers.
        metrics: where calls are counted.
        security: tokens.
        servicer: what changes things.
        outlier: what describes detectors.

    Attributes:
        server: to be given a port before `start`.
    """

    def __init__(
        self,
        settings: ServerSettings,
        metrics: Metrics,
        security: Security,
        servicer: AdminServicer,
        outlier: OutlierServicer,
    ) -> None:
        self._threads = CallThreads(MAX_CALLS + SPARE_THREADS, "admin", beside=LATER_THREADS)
        self._traffic = Traffic()
        services = (SERVICE, OUTLIER_SERVICE)
        calls = CallInterceptor(
            metrics,
            services,
            (reflection.SERVICE_NAME,),
            scores=False,
            traffic=self._traffic,
            max_message_bytes=settings.max_message_bytes,
            gated=GATED,
            gate=self._refuse_full,
        )
        self.server = grpc.server(
            self._threads,  # type: ignore[arg-type]  # of a pool gRPC uses `submit` alone
            interceptors=[calls, *security.interceptors],
            options=channel_options(settings),
        )
        pb_grpc.add_DetectorAdminServiceServicer_to_server(servicer, self.server)  # type: ignore[no-untyped-call]
        listing = grpc.unary_unary_rpc_method_handler(
            outlier.ListDetectors,
            outlier_pb2.ListDetectorsRequest.FromString,
            outlier_pb2.ListDetectorsResponse.SerializeToString,
        )
        handler = grpc.method_handlers_generic_handler(OUTLIER_SERVICE, {"ListDetectors": listing})
        self.server.add_generic_rpc_handlers((handler,))
        if settings.reflection:
            reflection.enable_server_reflection((*services, reflection.SERVICE_NAME), self.server)

    def _refuse_full(self) -> None:
        """Refuse a call that would wait for a thread, behind callers whose messages do not come."""
        calls = self._traffic.unary
        if calls > MAX_CALLS:
            raise busy(f"{calls} calls of the admin port are under way, and {MAX_CALLS} may be")

    def start(self) -> None:
        """Answer on the ports that `server` has been given.

        Raises:
            SoftkinError: as `CallThreads.start_all`.
        """
        self._threads.start_all()  # if one could not be started later, gRPC's thread that takes all calls would end
        self.server.start()

    def stop(self) -> None:
        """Cancel what is under way, and close the port."""
        self.server.stop(None).wait()
        self._threads.shutdown(wait=False)
