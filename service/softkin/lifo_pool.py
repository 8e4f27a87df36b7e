"""Threads of which the one that became idle last gets the next call."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

_T = TypeVar("_T")


class LifoPool(Executor):
    """A pool of many threads, few of which run at a time; safe to use from any thread.

    The threads of `ThreadPoolExecutor` take turns, so that among a thousand each call comes to one that has slept for a
    thousand calls, and whose stack has left the core's caches. Here as many threads are warm as calls are under way.

    Args:
        at_most: threads; calls beyond wait for one, first come, first served.
        name: of the pool, in the names of its threads.
    """

    def __init__(self, at_most: int, name: str) -> None:
        self._at_most = at_most
        self._name = name
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._idle: list[_Seat] = []
        self._waiting: deque[_Job] = deque()
        self._closed = False

    def start(self, threads: int, begin: Callable[[], object] = lambda: None) -> None:
        """Start threads now, and wait until they are idle; further ones are started when they are needed.

        Args:
            threads: how many.
            begin: what each does first.

        Raises:
            RuntimeError: no further thread can be started; none is left of those that were.
        """
        begun = threading.Semaphore(0)

        def first() -> None:
            begin()
            begun.release()

        seats: list[_Seat] = []
        with self._lock:
            try:
                for _ in range(threads):
                    seats.append(self._start_thread(first))
            except RuntimeError:
                del self._threads[len(self._threads) - len(seats) :]
                for seat in seats:
                    seat.give(None)
                raise
        for _ in range(threads):
            begun.acquire()
        with self._lock:
            self._idle += seats

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        """Run a call in a thread that is idle, in a new one, or in the next that becomes idle.

        Raises:
            RuntimeError: the pool is shut down, or has no thread and none can be started.
        """
        job = _Job(fn, args, kwargs)
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            seat = self._idle.pop() if self._idle else self._new_seat()
            if seat is None:
                self._waiting.append(job)
            else:
                seat.give(job)
        return job.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As for any executor: what was submitted is done first, unless it is cancelled."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            dropped = list(self._waiting) if cancel_futures else []
            if cancel_futures:
                self._waiting.clear()
        for job in dropped:
            job.future.cancel()
        for seat in idle:
            seat.give(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _new_seat(self) -> _Seat | None:
        """That of a new thread; None where there are enough, or no further one can be started. Holds the lock."""
        if len(self._threads) >= self._at_most:
            return None
        try:
            return self._start_thread(lambda: None)
        except RuntimeError:
            if not self._threads:  # a call would wait for ever
                raise
            return None

    def _start_thread(self, first: Callable[[], None]) -> _Seat:
        seat, name = _Seat(), f"{self._name}-{len(self._threads)}"
        thread = threading.Thread(target=self._work, args=(seat, first), name=name, daemon=True)
        thread.start()
        self._threads.append(thread)
        return seat

    def _work(self, seat: _Seat, first: Callable[[], None]) -> None:
        first()
        job = seat.take()
        while job is not None:
            job.run()
            del job  # an idle thread holds nothing of the last call
            job = self._next(seat)

    def _next(self, seat: _Seat) -> _Job | None:
        """The next call, or None when there will be none."""
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            if self._closed:
                return None
            self._idle.append(seat)
        return seat.take()


class _Seat:
    """Where a thread waits for its next call; None ends it."""

    __slots__ = ("_job", "_taken")

    def __init__(self) -> None:
        self._job: _Job | None = None
        self._taken = threading.Lock()
        self._taken.acquire()

    def give(self, job: _Job | None) -> None:
        self._job = job
        self._taken.release()

    def take(self) -> _Job | None:
        self._taken.acquire()
        job, self._job = self._job, None
        return job


class _Job:
    """A call and its future."""

    __slots__ = ("_args", "_fn", "_kwargs", "future")

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._fn, self._args, self._kwargs = fn, args, kwargs
        self.future: Future[Any] = Future()

    def run(self) -> None:
        """Do it."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._fn(*self._args, **self._kwargs)
        except BaseException as e:
            self.future.set_exception(e)
        else:
            self.future.set_result(result)
