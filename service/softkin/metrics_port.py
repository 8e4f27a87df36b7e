"""The port of the metrics: plain HTTP, one scrape to a connection."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import CollectorRegistry, make_wsgi_app, start_http_server

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

SILENT_SECONDS = 10.0
"""A connection that neither sends nor reads for so long is closed: each holds a thread, and some peers just vanish."""
ELSEWHERE = (
    b"only /metrics is here; whether the server is ready is told by grpc.health.v1.Health: softkin healthcheck\n"
)
"""The answer at any other path."""


def open_metrics_port(host: str, port: int, registry: CollectorRegistry) -> tuple[int, Callable[[], None]]:
    """Answer scrapes; returns the port's number, and what closes it.

    Raises:
        OSError: the port cannot be had.
    """
    httpd, thread = start_http_server(port, host, registry)
    httpd.set_app(_only_at_its_path(make_wsgi_app(registry)))
    httpd.RequestHandlerClass = _Scrape

    def close() -> None:
        httpd.shutdown()
        httpd.server_close()
        thread.join()

    return httpd.server_port, close


def _only_at_its_path(metrics: WSGIApplication) -> WSGIApplication:
    """The library's application answers at every path, and so would tell any HTTP probe that all is well."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/metrics":
            return metrics(environ, start_response)
        start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [ELSEWHERE]

    return answer


class _Scrape(WSGIRequestHandler):
    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(SILENT_SECONDS)

    def handle(self) -> None:
        with suppress(OSError):  # nobody is there any more: no line of the log
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of scrapes."""
