"""The process around a server: its log, its signals, its exit status."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from softkin import __version__
from softkin.loading import Load
from softkin.logs import configure, log, log_line
from softkin.metrics import Metrics
from softkin.registry import Registry
from softkin.server import Server
from softkin.settings import ServerSettings

M_ARENA_MAX = -8
"""What glibc calls it in malloc.h."""
SIGNAL_POLL_SECONDS = 0.5
STOPPING = signal.SIGTERM, signal.SIGINT


def serve(settings: ServerSettings, *, load: Load | None = None) -> int:
    """Serve until SIGTERM or SIGINT; a second signal stops at once. SIGHUP reloads. For the main thread.

    Args:
        settings: all options.
        load: makes detectors of the bundles; `Detector.load` when None.

    Returns:
        Exit status: 0 after a complete drain, 1 when requests were abandoned.

    Raises:
        SoftkinError: a bundle does not load, the device is missing, a port is taken.
    """
    configure(settings.log_level, settings.log_format)
    prepare()
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every counter, that nobody reads
    collectors = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=collectors)
    with _signals() as signals:
        server = Server(settings, Registry(), Metrics(collectors, version=__version__), load)
        signal.signal(signal.SIGHUP, lambda number, _: server.reloader.request())
        try:
            server.listen()
            log.info(log_line("starting", version=__version__, port=server.port, metrics_port=server.metrics_port))
            with _second_signal_exits():
                ready = server.make_ready(signals.empty)
            if ready:
                settle()
                admin = {"admin_port": server.admin_port} if server.admin_port else {}
                ports = {"port": server.port, "metrics_port": server.metrics_port, **admin}
                log.info(log_line("serving", host=settings.host, **ports))
        except BaseException:
            server.stop_now()
            raise
        return _drain(server, settings, signals)


def _drain(server: Server, settings: ServerSettings, signals: SimpleQueue[int]) -> int:
    asked = threading.Event()

    def stop() -> None:
        asked.wait()
        try:
            server.stop()
        finally:  # or a fault in there would leave the process waiting for another signal
            signals.put(0)

    stopping = threading.Thread(target=stop, name="drain", daemon=True)
    stopping.start()  # now: later the system may have no further thread to give
    log.info(
        log_line(
            "draining",
            signal=signal.Signals(_next(signals)).name,
            pending_requests=server.pending_requests,
            delay_seconds=settings.drain_delay_seconds,
            grace_seconds=settings.drain_grace_seconds,
        )
    )
    started = time.perf_counter()
    asked.set()
    if _next(signals) != 0:
        server.stop_now()
    stopping.join()
    abandoned = server.abandoned_requests
    log.info(log_line("stopped", seconds=round(time.perf_counter() - started, 3), abandoned_requests=abandoned))
    status = 1 if abandoned or server.pending_requests else 0
    if server.pending_requests or server.changing:
        # Threads still computing or loading would hold the interpreter's exit until they are done.
        logging.shutdown()
        os._exit(status)
    return status


def prepare() -> None:
    """Make a process fit for a server of many threads; before it starts any.

    All threads share two heaps: of hundreds, few run at a time, and glibc's eight heaps per core only fill memory. A
    thread that wakes does not push another from its core (SCHED_BATCH): most wake only to wait for the interpreter's
    lock, and to switch threads costs more than to wait.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have one heap anyway
        mallopt(M_ARENA_MAX, 2)
    if hasattr(os, "SCHED_BATCH"):  # Linux
        with suppress(OSError):  # refused by some sandboxes
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def settle() -> None:
    """Take what stays until the end, modules and the first detectors, out of the garbage collector's sight."""
    gc.collect()
    gc.freeze()


def _next(signals: SimpleQueue[int]) -> int:
    """The next signal.

    It is polled: a signal that arrives just before the main thread goes to sleep does not wake it, and Python runs
    handlers in that thread alone.
    """
    while True:
        with suppress(Empty):
            return signals.get(timeout=SIGNAL_POLL_SECONDS)


@contextmanager
def _signals() -> Iterator[SimpleQueue[int]]:
    """Collect SIGTERM and SIGINT, and ignore SIGHUP: until there is a server, no bundle has been read.

    SimpleQueue.put may interrupt itself; an Event set in a handler can deadlock.
    """
    signals: SimpleQueue[int] = SimpleQueue()
    before = {n: signal.signal(n, lambda number, _: signals.put(number)) for n in STOPPING}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _second_signal_exits() -> Iterator[None]:
    """End the process where a start that was told to stop is told again.

    It would stop with the bundle at hand, which storage that hangs never gives; nothing is in flight yet. A thread
    listens: Python runs handlers in the main one alone, which may sleep in a file for ever.
    """
    heard, number = os.pipe()
    os.set_blocking(number, False)

    def listen() -> None:
        told = 0
        while byte := os.read(heard, 1):
            told += byte[0] in STOPPING
            if told == 2:
                os.write(2, b"softkin: error: stopped by a second signal before the start was over\n")
                os._exit(1)
        os.close(heard)

    signal.set_wakeup_fd(number)
    with suppress(RuntimeError):  # no further thread is to be had: then the first one has to do
        threading.Thread(target=listen, name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        os.close(number)
