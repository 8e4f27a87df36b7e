"""The admin port while a change is under way: large bundles take minutes to load."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from softkin.admin import CHANGES, RETRY_AFTER_SECONDS
from softkin.admin_client import AdminClient
from softkin.admin_port import MAX_CALLS, SERVICE
from softkin.client import Client
from softkin.errors import InvalidInputError, OverloadedError, PreconditionError, SoftkinError, UnavailableError

SET_LABEL = {"grpc_type": "UNARY", "grpc_service": SERVICE, "grpc_method": "SetLabel"}


@contextmanager
def changes_under_way(operated, loading):
    """As many as may be, one of which is made; gives what they come to. All of them end with the block."""
    loading.gate = threading.Event()
    with operated.admin() as client, ThreadPoolExecutor(CHANGES) as pool:
        try:
            first = pool.submit(client.load, "v2")
            assert loading.entered.acquire(timeout=20)
            yield [first, *(pool.submit(set_label, operated, client, f"label-{i}") for i in range(1, CHANGES))]
        finally:
            loading.gate.set()


def set_label(operated, client, label):
    """Have it wait for its turn, also where a test that asks for one more was there before it."""
    operated.until(lambda: not refused(lambda: client.set_label("standin", "1", label)))


def refused(change):
    """Whether a change finds as many under way as may be."""
    try:
        change()
    except OverloadedError:
        return True
    except UnavailableError:
        return False  # it waited
    return False


def until_refused(operated):
    """Wait until one more change is: the others have their places then."""
    operated.until(lambda: operated.sample("grpc_server_started_total", **SET_LABEL) == CHANGES - 1)
    with AdminClient(f"127.0.0.1:{operated.server.admin_port}", timeout_seconds=0.5) as hasty:
        operated.until(lambda: refused(lambda: hasty.load("v3")))


def test_reads_are_answered_while_as_many_changes_as_may_be_are_under_way(operated, loading):
    """What is loaded is what an operator wants to know when a change takes long; and those changes lose nothing."""
    with changes_under_way(operated, loading) as changes:
        until_refused(operated)
        with operated.admin() as reader:
            seen = [d.version for d in reader.detectors()]
            with grpc.insecure_channel(reader._target) as channel:
                services = ProtoReflectionDescriptorDatabase(channel).get_services()
        assert not any(change.done() for change in changes)

    assert seen == ["1"]
    assert SERVICE in services
    for change in changes:
        change.result(timeout=20)
    with operated.admin() as reader:
        assert {d.version: d.labels for d in reader.detectors()} == {
            "1": tuple(sorted([*(f"label-{i}" for i in range(1, CHANGES)), "stable"])),
            "2": (),
        }


def test_every_further_change_is_refused_at_once_and_is_no_reload_that_failed(operated, loading):
    """No bundle was read: an alert of a failed reload would send somebody to look for a damaged one."""
    with changes_under_way(operated, loading), operated.admin() as client:
        until_refused(operated)
        failed = operated.sample("softkin_reloads_total", result="failed")
        for change in (
            lambda: client.load("v3"),
            lambda: client.unload("standin", "1"),
            lambda: client.set_label("standin", "1", "x"),
            lambda: client.remove_label("standin", "stable"),
        ):
            with pytest.raises(OverloadedError) as e:
                change()
            assert e.value.retry_after_seconds == RETRY_AFTER_SECONDS
            assert f"{CHANGES} changes are under way, as many as may be" in str(e.value)
            assert "see what is loaded (ListDetectors, or softkin admin list); retry after 5 s" in str(e.value)
        assert operated.sample("softkin_reloads_total", result="failed") == failed


def test_callers_that_send_no_message_do_not_keep_others_waiting(operated):
    """Each holds a thread; one more call is refused and told when to come back, and the port is free once they go."""
    with grpc.insecure_channel(f"127.0.0.1:{operated.server.admin_port}") as channel:
        never = threading.Event()

        def silence():
            never.wait(30)
            yield b""

        silent = [channel.stream_unary(f"/{SERVICE}/SetLabel").future(silence(), timeout=60) for _ in range(MAX_CALLS)]
        operated.until(lambda: operated.sample("grpc_server_started_total", **SET_LABEL) == MAX_CALLS)

        with operated.admin() as client:
            with pytest.raises(OverloadedError, match=f"{MAX_CALLS + 1} calls of the admin port are under way"):
                client.detectors()
            for call in silent:
                call.cancel()
            never.set()
            operated.until(lambda: listed(client))


def listed(client):
    """Whether the port lists what is loaded."""
    try:
        return bool(client.detectors())
    except OverloadedError:
        return False


def test_callers_who_gave_up_waiting_leave_room_for_the_next(operated, admin, loading):
    """Else as many tries as may be under way would shut the port to every change, until the first is made."""
    loading.gate = threading.Event()
    target = f"127.0.0.1:{operated.server.admin_port}"
    loads = threading.Thread(target=admin.load, args=("v2",))
    loads.start()
    assert loading.entered.acquire(timeout=20)

    for _ in range(CHANGES):
        with (
            AdminClient(target, timeout_seconds=1) as hasty,
            pytest.raises(UnavailableError, match="no answer in time"),
        ):
            hasty.load("v3")
    try:
        with AdminClient(target, timeout_seconds=10) as patient:
            seen = [d.version for d in patient.detectors()]
    finally:
        loading.gate.set()
        loads.join(timeout=20)

    assert seen == ["1"]
    assert len(loading.loaded) == 1


def test_the_metrics_port_is_told_from_an_admin_port(operated):
    """By the option of the port that was meant, which is not that of the scores."""
    with (
        AdminClient(f"127.0.0.1:{operated.server.metrics_port}", timeout_seconds=20) as client,
        pytest.raises(SoftkinError) as e,
    ):
        client.detectors()

    assert "no gRPC server answers there: give the port of --admin-port, not that of --metrics-port" in str(e.value)
    with (
        Client(f"127.0.0.1:{operated.server.metrics_port}", timeout_seconds=5) as scoring,
        pytest.raises(SoftkinError, match="give the port of --port, not that of --metrics-port"),
    ):
        scoring.detectors()


def test_what_is_refused_before_a_bundle_is_read_is_no_reload_that_failed(operated, admin, loading):
    """The alert says that a bundle is damaged; a slip of the caller's, or one who gave up waiting, tells of none."""
    for path, labels in (("../outside", []), ("", []), ("v2", ["a b"])):
        with pytest.raises(InvalidInputError):
            admin.load(path, labels)
    loading.gate = threading.Event()
    loads = threading.Thread(target=admin.load, args=("v2",))
    loads.start()
    assert loading.entered.acquire(timeout=20)
    with AdminClient(admin._target, timeout_seconds=0.5) as hasty, pytest.raises(UnavailableError):
        hasty.load("v3")
    ended = {"grpc_type": "UNARY", "grpc_service": SERVICE, "grpc_method": "LoadDetector"}
    operated.until(lambda: operated.sample("grpc_server_handling_seconds_count", **ended) == 4)

    assert operated.sample("softkin_reloads_total", result="failed") == 0

    loading.gate.set()
    loads.join(timeout=20)
    with pytest.raises(PreconditionError, match="cannot be read"):
        admin.load("nothing")
    assert operated.sample("softkin_reloads_total", result="failed") == 1
