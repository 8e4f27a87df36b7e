"""Watchers of the health service: what one of them does is nothing to the others."""

from __future__ import annotations

import gc
import threading
from contextlib import suppress
from types import SimpleNamespace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from softkin.watched_health import SENDERS, SILENT_READERS, _Watch
from standin import StandIn

Status = health_pb2.HealthCheckResponse
ANY = health_pb2.HealthCheckRequest()


def watchers():
    """How many the process remembers."""
    gc.collect()  # those of servers before
    return sum(type(found) is _Watch for found in gc.get_objects())  # isinstance would ask each for its class


@pytest.fixture
def does_not_read():
    """Opens a watch on a connection that takes five bytes, which no status fits into, and reads nothing."""
    channels = []

    def watch(target):
        options = {"grpc.http2.lookahead_bytes": 5, "grpc.http2.bdp_probe": 0, "grpc.use_local_subchannel_pool": 1}
        channels.append(grpc.insecure_channel(target, options=list(options.items())))
        return health_pb2_grpc.HealthStub(channels[-1]).Watch(ANY, timeout=120)

    yield watch
    for channel in channels:
        channel.close()


def test_a_watcher_that_does_not_read_keeps_no_other_waiting(start, does_not_read):
    """The others learn every change, and the end; and a drain does not wait for it."""
    running = start(StandIn(), drain_grace_seconds=600)
    silent = [does_not_read(running.target) for _ in range(20)]
    running.until(lambda: watchers() >= len(silent))

    watch = running.health.Watch(ANY, timeout=20)
    seen = [next(watch).status]
    stopping = threading.Thread(target=running.server.stop, daemon=True)
    stopping.start()
    seen += [response.status for response in watch]

    stopping.join(20)
    assert seen == [Status.SERVING, Status.NOT_SERVING]
    assert not stopping.is_alive()


def test_more_watchers_that_do_not_read_than_threads_keep_no_other_waiting(start, does_not_read):
    """The first of them lose their watch."""
    running = start(StandIn())
    before = watchers()
    silent = [does_not_read(running.target) for _ in range(SENDERS + 20)]
    running.until(lambda: watchers() > before + SILENT_READERS)

    assert next(running.health.Watch(ANY, timeout=20)).status == Status.SERVING
    running.until(lambda: watchers() < before + len(silent))


def test_nor_do_they_where_no_further_thread_can_be_started(start, does_not_read, monkeypatch):
    """A single one would hold the only thread that sends."""
    running, begin = start(StandIn()), threading.Thread.start

    def no_more(thread):
        if thread.name.startswith("health_"):
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", no_more)
    before = watchers()
    silent = does_not_read(running.target)
    running.until(lambda: watchers() > before)
    seen = []

    def asked_again():
        """Each ends one that holds the thread, once that has had its time."""
        with suppress(grpc.RpcError):
            seen.append(next(running.health.Watch(ANY, timeout=1)).status)
        return bool(seen)

    running.until(asked_again)

    assert seen == [Status.SERVING]
    silent.cancel()


def test_a_message_that_is_none_is_refused_with_words(start):
    """As the other services do."""
    running = start(StandIn())
    check = running.channel.stream_unary("/grpc.health.v1.Health/Check")

    for messages in ([], [b"\xff"]):
        with pytest.raises(grpc.RpcError) as e:
            check(iter(messages), timeout=20)
        assert e.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert e.value.details() == "a call of the health service brings one HealthCheckRequest"


def test_watchers_that_leave_at_once_are_forgotten(start):
    """Many have gone before their watch begins."""
    running = start(StandIn())
    before = watchers()

    for _ in range(1000):
        running.health.Watch(ANY).cancel()

    last = running.health.Watch(ANY, timeout=20)
    assert next(last).status == Status.SERVING
    last.cancel()
    running.until(lambda: watchers() <= before)


def test_a_watcher_that_has_left_before_its_watch_begins_is_forgotten(start):
    """gRPC calls nobody back for it any more."""
    running = start(StandIn())
    before = watchers()
    gone = SimpleNamespace(add_callback=lambda left: False, cancel=lambda: None)

    running.server._health.Watch(ANY, gone, lambda response: None)

    running.until(lambda: watchers() <= before)


def test_names_of_no_service_are_unknown_and_not_kept(start):
    """Not even while they are watched: whoever calls may think of as many as memory holds."""
    running = start(StandIn())
    names = [f"no such service {i}" for i in range(3)]

    watches = [running.health.Watch(health_pb2.HealthCheckRequest(service=name), timeout=20) for name in names]
    seen = [next(watch).status for watch in watches]

    gc.unfreeze()  # a module may keep them, too
    kept = [key for found in gc.get_objects() if type(found) is dict for key in found if type(key) is str]
    gc.freeze()
    assert not set(kept) & set(names)
    running.server.stop()
    assert [list(watch) for watch in watches] == [[], [], []]
    assert seen == [Status.SERVICE_UNKNOWN] * 3


def test_watches_are_bounded_and_the_next_one_ends_the_first(start, monkeypatch):
    """Nobody is let in for them with a token, and each takes memory for as long as its caller pleases."""
    monkeypatch.setattr("softkin.watched_health.MOST_WATCHES", 2)
    running = start(StandIn())
    watches, seen = [], []

    for _ in range(4):  # each after the one before, which has begun
        watches.append(running.health.Watch(ANY, timeout=20))
        seen.append(next(watches[-1]).status)
    ended = []
    for watch in watches[:2]:
        with pytest.raises(grpc.RpcError) as e:
            next(watch)
        ended.append(e.value.code())
    running.server.stop()

    assert seen == [Status.SERVING] * 4
    assert ended == [grpc.StatusCode.CANCELLED] * 2
    assert [[r.status for r in watch] for watch in watches[2:]] == [[Status.NOT_SERVING]] * 2


def test_a_watch_that_begins_while_the_server_stops_ends_at_once(start):
    """The drain would wait for it all its time: it began after the others had been told."""
    running = start(StandIn())
    running.server._health.end_watches()

    seen = [response.status for response in running.health.Watch(ANY, timeout=20)]

    assert seen == [Status.SERVING]


def test_after_its_end_a_watch_is_told_nothing_more(start):
    """No status, and not its end again: of a call there is one."""
    running, told = start(StandIn()), []
    health = running.server._health
    context = SimpleNamespace(add_callback=lambda left: True, cancel=lambda: None)
    health.Watch(ANY, context, told.append)

    health.end_watches()
    running.server.stop()

    for thread in [t for t in threading.enumerate() if t.name.startswith("health")]:
        thread.join(10)
    assert [response and response.status for response in told] == [Status.SERVING, None]


def test_statuses_are_sent_by_one_thread_in_their_order_though_one_cannot_be_sent():
    """Two threads could tell a watcher the older status last."""
    submitted, sent = [], []

    def send(response):
        sent.append(response)
        if len(sent) == 1:
            raise RuntimeError("cannot be sent")

    watch = _Watch(send, submitted.append)
    for response in ("first", "second", None):
        watch(response)
    [send_waiting] = submitted
    send_waiting()

    assert sent == ["first", "second", None]


def test_the_threads_that_send_end_with_the_server(start):
    """A process may have one server after another."""
    before = threading.enumerate()
    running = start(StandIn())
    assert next(running.health.Watch(ANY, timeout=20)).status == Status.SERVING

    running.server.stop()

    running.until(lambda: not [t for t in threading.enumerate() if t.name.startswith("health") and t not in before])
