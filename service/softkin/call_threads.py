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
"""At most, for calls of the services that are left alone; most are started when they are needed, which is rare."""
UNWRAPPED_PLACES = 32
"""Of those threads that their callers can hold, until one more ends the first of them. They ask for no token, and each
may have a message on its way that takes the memory of the largest request; yet a burst of probes must find room."""
UNWRAPPED_AT_START = 4
STACK_LEVELS = 200
"""Of a nested list whose text takes some 100 kB of stack to make, which is what a call takes."""

_DEEP: list[Any] = []
for _ in range(STACK_LEVELS):
    _DEEP = [_DEEP]
_DONE: Future[Any] = Future()
_DONE.set_result(None)

_Work = Callable[[], None]


class Account(Protocol):
    """Of one call; told when it has ended."""

    def end(self) -> None:
        """Count the end."""


class _Arriving(threading.local):
    account: Account | None = None


arriving = _Arriving()
"""Whose call gRPC hands to the threads next: it asks the interceptors for a handler and then, in the same thread, calls
`submit`. So calls are counted that never reach a handler, because their caller left before the message was there."""


class CallThreads:
    """Runs calls, and ends the accounts of those that have one.

    A call holds its thread from its arrival, also while its message is on its way. Those without an account have
    threads of their own: slow or silent callers of the others must not make the server look dead. What waits for its
    caller in such a thread holds one of `unwrapped_places`, so that no caller keeps them from the next.

    gRPC watches the future of every call only to count calls against a limit of its own, which is not used here, and
    takes for it the lock under which all calls arrive. It gets one that is done, so that calls arrive faster. So they
    do with a plain queue: Python's pool makes two locks for each call, and counts its idle threads.

    Args:
        threads: calls with an account that can run at the same time.
        name: of the threads.
        beside: further threads that there must be room for at the start: whoever needs them has no way to say so.
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
