"""The threads in which gRPC's synchronous server runs its calls."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol
from weakref import WeakSet, finalize

from softkin.errors import SoftkinError
from softkin.logs import log, log_line
from softkin.places import Places

UNWRAPPED_THREADS = 256
"""Most threads for calls without an account: of health and reflection. Nearly all start only when they are needed."""
UNWRAPPED_PLACES = 32
"""How many of those threads callers can hold; one more call ends the oldest. Such calls need no token, and each may be
sending a message as large as the largest request; yet a burst of probes must find room."""
UNWRAPPED_AT_START = 4
STACK_LEVELS = 200
"""Levels of a nested list: to make its text takes some 100 kB of stack, as a call does."""

_DEEP: list[Any] = []
for _ in range(STACK_LEVELS):
    _DEEP = [_DEEP]
_DONE: Future[Any] = Future()
_DONE.set_result(None)

_Work = Callable[[], None]


class Account(Protocol):
    """The account of one call, told when the call has ended."""

    def end(self) -> None:
        """Count the end."""


class _Arriving(threading.local):
    account: Account | None = None


arriving = _Arriving()
"""The account of the call that gRPC submits next: it asks the interceptors for a handler and then, in the same thread,
calls `submit`. So a call is counted even if its caller leaves before the message is there, and no handler runs."""


class CallThreads:
    """Runs calls, and ends the accounts of those that have one.

    A call holds its thread from its arrival on, even while its message is on its way. Calls without an account have
    threads of their own, so that slow or silent callers of the others cannot make the server look dead. Whatever waits
    for its caller in such a thread holds one of `unwrapped_places`, so that no caller keeps the threads from the next.

    gRPC watches the future of every call only to enforce a limit of its own, which is not used here, and takes the lock
    for that under which all calls arrive. It gets a future that is done already, so that calls arrive faster. A plain
    queue helps there too: Python's pool makes two locks for each call, and counts its idle threads.

    Args:
        threads: calls with an account that can run at the same time.
        name: of the threads.
        beside: further threads that the machine must have room for at the start: whoever starts them later could not
            report that it has none.
    """

    def __init__(self, threads: int, name: str, beside: int = 0) -> None:
        self._calls: SimpleQueue[_Work | None] = SimpleQueue()
        self._unwrapped = ThreadPoolExecutor(UNWRAPPED_THREADS, thread_name_prefix=f"{name}-unwrapped")
        self.unwrapped_places = Places(UNWRAPPED_PLACES)
        """For calls without an account to hold while they wait for their caller."""
        self._started = threading.Barrier(threads + beside + UNWRAPPED_AT_START + 1)
        # Daemons, so that one that was never shut down does not hold the interpreter's exit; they end with this object.
        make = partial(threading.Thread, target=_work, args=(self._calls, self._started), daemon=True)
        self._threads = [make(name=f"{name}_{i}") for i in range(threads)]
        room = partial(threading.Thread, target=_take_room, args=(self._started,), daemon=True)
        self._beside = [room(name=f"{name}-beside_{i}") for i in range(beside)]
        self._end = finalize(self, _end, self._calls, threads)
        self._closed = False
        _all.add(self)

    def start_all(self) -> None:
        """Start every thread now: the first burst of calls finds them waiting, and memory does not grow with it.

        Raises:
            SoftkinError: the machine, or a limit on this process, does not allow so many; none is left waiting then.
        """
        threads = [*self._threads, *self._beside]
        try:
            for thread in threads:
                thread.start()
            for _ in range(UNWRAPPED_AT_START):
                self._unwrapped.submit(_begin, self._started)
        except RuntimeError as e:
            self._started.abort()
            self.shutdown(wait=False)
            raise SoftkinError(
                f"cannot start {len(threads)} threads ({e}), most of them for calls that may be under way; lower "
                "max_pending_requests or max_streams, or raise what limits this process (ulimit -u, pids_limit, memory)"
            ) from None
        self._started.wait()
        for thread in self._beside:
            thread.join()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call to its end, then count it; the future says nothing about it."""
        account, arriving.account = arriving.account, None
        if account is not None:
            self._calls.put(partial(_run, account, fn, *args, **kwargs))
            return _DONE
        try:
            self._unwrapped.submit(fn, *args, **kwargs)
        except RuntimeError:
            # No further thread can be started, and the call waits for one of those that are there. Raised here, this
            # would end the thread that takes all calls.
            if self._closed:
                raise
            self.unwrapped_places.make_room()
        return _DONE

    def shutdown(self, wait: bool = True) -> None:
        """Take no more calls; those that are there are run."""
        self._closed = True
        self._unwrapped.shutdown(wait)
        self._end()
        for thread in self._threads if wait else ():
            if thread.ident is not None:
                thread.join()


_all: WeakSet[CallThreads] = WeakSet()


@atexit.register
def _shut_all_down() -> None:
    for threads in list(_all):
        threads.shutdown()


def _begin(started: threading.Barrier) -> None:
    repr(_DEEP)  # uses as much of the stack as a call does, so that its pages are there
    started.wait()


def _take_room(started: threading.Barrier) -> None:
    with suppress(threading.BrokenBarrierError):
        started.wait()


def _work(calls: SimpleQueue[_Work | None], started: threading.Barrier) -> None:
    with suppress(threading.BrokenBarrierError):
        _begin(started)
    while (call := calls.get()) is not None:
        call()
        del call  # an idle thread must not hold a request


def _run(account: Account, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
    try:
        try:
            fn(*args, **kwargs)
        finally:
            account.end()
    except BaseException as error:
        # What handlers raise gRPC reports itself; this is a fault of its own, and the thread lives on.
        log.error(log_line("call_failed"), exc_info=error)


def _end(calls: SimpleQueue[_Work | None], threads: int) -> None:
    for _ in range(threads):
        calls.put(None)
