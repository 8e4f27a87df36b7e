"""The threads that calls run in."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from types import SimpleNamespace

import pytest

from softkin.call_threads import UNWRAPPED_AT_START, CallThreads, arriving
from softkin.errors import SoftkinError


class Account:
    """Says when it has been ended, and how often."""

    def __init__(self):
        self.ended, self.ends = threading.Event(), 0

    def end(self):
        """By the threads."""
        self.ends += 1
        self.ended.set()


@pytest.fixture
def threads():
    """Two, started."""
    made = CallThreads(2, "test")
    made.start_all()
    yield made
    made.shutdown()


def submit(threads, fn, *args):
    """A call with an account, as gRPC submits it."""
    arriving.account = account = Account()
    threads.submit(fn, *args)
    return account


def alive(name):
    """Threads of that name."""
    return [t for t in threading.enumerate() if t.name.startswith(f"{name}_")]


def test_where_no_further_thread_can_be_started_calls_wait_for_those_that_are_there(threads, monkeypatch):
    """Raised in gRPC's own thread, the failure would end the thread that takes all calls."""

    def no_more(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_more)
    held, ran = threading.Event(), threading.Semaphore(0)

    def call():
        held.wait(30)
        ran.release()

    for _ in range(20):
        threads.submit(call)
    held.set()

    assert all(ran.acquire(timeout=30) for _ in range(20))


def test_where_no_further_thread_can_be_started_who_holds_one_makes_room(threads, monkeypatch):
    """The caller that has been silent for longest loses its own: else four of them would keep everybody out."""

    def no_more(thread):
        raise RuntimeError("can't start new thread")

    def silent(caller):
        with threads.unwrapped_places.hold(caller):
            begun.release()
            caller.ended.wait(30)

    begun, ran = threading.Semaphore(0), threading.Event()
    callers = [SimpleNamespace(ended=threading.Event()) for _ in range(UNWRAPPED_AT_START)]
    monkeypatch.setattr(threading.Thread, "start", no_more)
    monkeypatch.setattr("softkin.places.PATIENCE_SECONDS", 1000)
    for caller in callers:
        caller.cancel = caller.ended.set
        threads.submit(silent, caller)
        assert begun.acquire(timeout=30)
    monkeypatch.setattr("softkin.places.PATIENCE_SECONDS", 0)

    for _ in range(1 + UNWRAPPED_AT_START):  # Python's pool may believe for a call that a thread is idle
        threads.submit(ran.set)
        if ran.wait(5):
            break

    found = ran.is_set(), [caller.ended.is_set() for caller in callers]
    for caller in callers:
        caller.cancel()
    assert found == (True, [True, False, False, False])


def test_an_account_is_ended_after_its_call_whatever_becomes_of_that(threads, caplog):
    """And the thread takes the next one: with one fewer for each fault the server would fall silent."""
    held = threading.Event()

    first = submit(threads, held.wait, 30)
    failed = [submit(threads, exit, "no") for _ in range(4)]
    running = first.ended.wait(0.05)
    held.set()

    assert not running
    assert all(account.ended.wait(30) for account in (first, *failed))
    last = submit(threads, str)
    assert last.ended.wait(30)
    assert [r.exc_info[0] for r in caplog.records if "call_failed" in r.message] == [SystemExit] * 4


def test_calls_with_an_account_wait_for_a_thread_and_those_without_do_not(threads):
    """However many of the others are held up: health answers."""
    held, healthy = threading.Event(), threading.Event()
    calls = [submit(threads, held.wait, 30) for _ in range(3)]

    threads.submit(healthy.set)

    assert healthy.wait(30)
    held.set()
    assert all(account.ended.wait(30) for account in calls)


def test_calls_without_an_account_do_not_wait_for_one_another(threads):
    """Some hold a thread as long as they like: who asks for reflection and sends nothing."""
    held, begun = threading.Event(), threading.Semaphore(0)

    def call():
        begun.release()
        held.wait(30)

    for _ in range(10 * UNWRAPPED_AT_START):
        threads.submit(call)

    found = [begun.acquire(timeout=10) for _ in range(10 * UNWRAPPED_AT_START)]
    held.set()
    assert all(found)


def test_an_account_is_that_of_the_next_call_in_its_thread_and_of_no_other(threads):
    """Two ports take calls in threads of their own; and health after a counted call is not counted."""
    other, uncounted = threading.Event(), threading.Event()
    arriving.account = account = Account()

    elsewhere = threading.Thread(target=threads.submit, args=(other.set,))
    elsewhere.start()
    elsewhere.join(10)
    before = other.wait(10), account.ends
    threads.submit(str)
    threads.submit(uncounted.set)

    assert before == (True, 0)
    assert account.ended.wait(10)
    assert uncounted.wait(10)
    threads.shutdown()
    assert account.ends == 1


def test_the_future_of_every_call_is_done_at_once(threads):
    """gRPC adds a callback to it: one that is not done keeps that, and a call's state with it, as long as it lives."""
    held = threading.Event()
    arriving.account = account = Account()

    counted, uncounted = threads.submit(held.wait, 30), threads.submit(held.wait, 30)
    found = counted.done(), uncounted.done()
    held.set()

    assert found == (True, True)
    assert account.ended.wait(10)


def test_every_call_gets_all_its_arguments(threads):
    """Also those by name, as with any pool."""
    found = []

    def call(*args, **kwargs):
        found.append((args, kwargs))

    arriving.account = Account()
    for _ in range(2):  # the second has none
        threads.submit(call, 1, 2, fn=3, account=4)
    threads.shutdown()

    assert found == [((1, 2), {"fn": 3, "account": 4})] * 2


def test_an_idle_thread_holds_nothing_of_the_call_before(threads):
    """A request may be 64 MB, and there are hundreds of threads."""

    class Request:
        pass

    request = Request()
    gone = threading.Event()
    weakref.finalize(request, gone.set)

    account = submit(threads, lambda request: None, request)
    assert account.ended.wait(30)
    del request, account

    assert gone.wait(30)


def test_what_was_submitted_before_the_end_is_run():
    """Two threads, three calls, and no thread is left."""
    threads = CallThreads(2, "ending")
    threads.start_all()
    held = threading.Event()
    calls = [submit(threads, held.wait, 30) for _ in range(3)]

    threads.shutdown(wait=False)
    held.set()
    threads.shutdown()

    assert all(account.ended.is_set() for account in calls)
    assert not alive("ending")


def test_the_end_waits_for_calls_without_an_account_too_and_takes_no_more(threads, monkeypatch):
    """Also for those that found no thread yet; a later one is told, instead of being dropped without a word."""
    held, ran = threading.Event(), []

    def no_more(thread):
        raise RuntimeError("can't start new thread")

    def call():
        held.wait(30)
        ran.append(1)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_more)
        for _ in range(2 * UNWRAPPED_AT_START):
            threads.submit(call)
    ending = threading.Thread(target=threads.shutdown)
    ending.start()
    ending.join(0.05)
    waits = ending.is_alive()
    held.set()
    ending.join(10)

    assert waits
    assert len(ran) == 2 * UNWRAPPED_AT_START
    with pytest.raises(RuntimeError, match="after shutdown"):
        threads.submit(call)


@pytest.mark.parametrize("room", range(2 + 1 + UNWRAPPED_AT_START))
def test_a_start_for_which_there_is_no_room_leaves_no_thread(monkeypatch, room):
    """Not even while somebody still holds the object, as an error that is kept does."""
    started, begin = [], threading.Thread.start

    def start(thread):
        if len(started) == room:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        begin(thread)

    threads = CallThreads(2, "crowded", beside=1)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(SoftkinError, match="cannot start 3 threads"):
            threads.start_all()

    for thread in started:
        thread.join(30)
    assert len(started) == room
    assert not any(thread.is_alive() for thread in started)


def test_threads_beside_those_of_calls_only_try_whether_there_is_room():
    """Whoever needs them later starts his own: these have ended when the start is over, and calls are run."""
    threads = CallThreads(2, "beside", beside=3)
    threads.start_all()

    assert not [t for t in threading.enumerate() if t.name.startswith("beside-beside")]
    assert len(alive("beside")) == 2
    assert all(submit(threads, str).ended.wait(30) for _ in range(4))
    threads.shutdown()


def test_threads_that_were_never_started_are_shut_down_like_others():
    """Those of the admin port are started last: a server that fails before would end with an error of its threads."""
    threads = CallThreads(2, "never")

    threads.shutdown()

    assert not alive("never")


def test_threads_that_nobody_shut_down_end_with_their_object():
    """A server that could not listen leaves nothing behind."""
    threads = CallThreads(3, "forgotten")
    threads.start_all()
    left = alive("forgotten")

    del threads
    gc.collect()
    for thread in left:
        thread.join(30)

    assert len(left) == 3
    assert not alive("forgotten")


def test_a_process_ends_after_the_calls_that_run_and_with_threads_that_wait():
    """Killed in the middle, a call could crash the process; waited for, an idle thread would hold it for ever."""
    code = (
        "import time; from softkin.call_threads import UNWRAPPED_AT_START, CallThreads, arriving\n"
        "class Account:\n    def end(self): print('ended', flush=True)\n"
        "ports = {seconds: CallThreads(3, 'test') for seconds in (0.3, 0.6, 0.9)}\n"
        "for seconds, threads in ports.items():\n"
        "    threads.start_all(); arriving.account = Account(); threads.submit(time.sleep, seconds)\n"
        "print('exit', flush=True)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.split() == ["exit", "ended", "ended", "ended"]
    assert not done.stderr
