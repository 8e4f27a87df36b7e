"""The port of the metrics: plain HTTP, one scrape to a connection."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import CollectorRegistry, make_wsgi_app, start_http_server

from softkin.metrics import at_its_path

SILENT_SECONDS = 10.0
"""After which a connection is closed that neither sends nor reads: each holds a thread, and some just vanish."""


def open_metrics_port(host: str, port: int, registry: CollectorRegistry) -> tuple[int, Callable[[], None]]:
    """Answer scrapes; returns the port's number, and what closes it.

    Raises:
        OSError: the port cannot be had.
    """
    httpd, thread = start_http_server(port, host, registry)
    httpd.set_app(at_its_path(make_wsgi_app(registry)))
    httpd.RequestHandlerClass = _Scrape

    def close() -> None:
        httpd.shutdown()
        httpd.server_close()
        thread.join()

    return httpd.server_port, close


class _Scrape(WSGIRequestHandler):
    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(SILENT_SECONDS)

    def handle(self) -> None:
        with suppress(OSError):  # nobody is there any more: no line of the log
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of scrapes."""
