"""The policy `resource`: one version in memory at a time."""

from __future__ import annotations

import logging
import re
import threading
import weakref

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

import standin_bundles
from softkin.converters import array_to_tensor
from softkin.errors import DeviceError
from softkin.server import READY
from softkin.statuses import RETRY_AFTER, STATUS_DETAILS
from softkin.v1 import outlier_pb2 as pb
from standin import StandIn


def write(path, version):
    """A bundle whose version no other test's answers can be taken for."""
    return standin_bundles.write(path, str(version), shift=1000 * version)


@pytest.fixture
def running(start, tmp_path, loading):
    """One path with version 1, and another name beside it."""
    write(tmp_path / "bundle", 1)
    bundles = (tmp_path / "bundle",)
    found = start(StandIn("other"), load=loading, bundles=bundles, reload_policy="resource", drain_grace_seconds=20)
    assert loading.entered.acquire(timeout=20)
    return found


def begin_reload(running, loading):
    """Reload in another thread, up to where the new version is being loaded."""
    loading.gate = threading.Event()
    thread = threading.Thread(target=running.server.reloader.reload)
    thread.start()
    assert loading.entered.acquire(timeout=20)
    return thread


def test_callers_are_told_to_retry_while_there_is_no_version(running, loading, tmp_path, rows):
    """UNAVAILABLE with the delay, where every client looks for it; other names answer all the time."""
    write(tmp_path / "bundle", 2)
    thread = begin_reload(running, loading)

    with pytest.raises(grpc.RpcError) as e:
        running.score(rows(1), detector="standin")
    beside = running.score(rows(1), detector="other").budget.detector
    loading.gate.set()
    thread.join(timeout=20)

    assert e.value.code() is grpc.StatusCode.UNAVAILABLE
    assert e.value.details() == "version '1' is being replaced; retry after 2 s"
    trailers = dict(e.value.trailing_metadata())
    assert trailers[RETRY_AFTER] == "2000"
    status, info = Status.FromString(trailers[STATUS_DETAILS]), RetryInfo()
    assert status.details[0].Unpack(info)
    assert info.retry_delay.ToJsonString() == "2s"
    assert beside == "other"
    assert running.score(rows(1), detector="standin").budget.version == "2"


def test_a_client_of_ours_does_not_notice_it(running, loading, tmp_path, rows):
    """It waits as long as it is told, and tries again."""
    write(tmp_path / "bundle", 2)
    thread = begin_reload(running, loading)
    found = []

    def call():
        with running.client(detector="standin") as client:
            found.append(client.score(rows(1)).budget.version)

    caller = threading.Thread(target=call)
    caller.start()
    running.until(lambda: running.sample("softkin_rejected_total", reason="unavailable") >= 1)
    loading.gate.set()
    thread.join(timeout=20)
    caller.join(timeout=20)

    assert found == ["2"]


def test_the_old_memory_is_free_before_the_new_version_is_loaded(start, loading, tmp_path, rows):
    """Even when a request was in flight: that one is waited for, and gets its answer."""
    path = tmp_path / "old"
    write(path, 1)
    loading.detector_gate = gate = threading.Event()
    alive, made = [], []

    def load(*arguments, **options):
        alive.append([m() is not None for m in made])
        detector = loading(*arguments, **options)
        made.append(weakref.ref(detector))
        return detector

    running = start(load=load, bundles=(path,), reload_policy="resource", drain_grace_seconds=60)
    call = running.stub.Score.future(pb.ScoreRequest(inputs=array_to_tensor(rows(1))), timeout=60)
    running.until(lambda: running.server.pending_requests == 1)
    write(path, 2)
    thread = threading.Thread(target=running.server.reloader.reload)
    thread.start()

    def refused():
        try:
            running.stub.GetDetector(pb.GetDetectorRequest(), timeout=20)
        except grpc.RpcError as e:
            return "is being replaced" in e.details()
        return False

    running.until(refused)
    gate.set()
    thread.join(timeout=30)

    assert call.result(timeout=20).budget.version == "1"
    assert alive == [[], [False]]
    assert running.score(rows(1)).budget.version == "2"
    write(path, 3)
    running.server.reloader.reload()
    assert alive[2:] == [[False, False]]
    assert running.score(rows(1)).budget.version == "3"


def test_a_request_that_takes_too_long_does_not_keep_the_new_version_away(start, loading, tmp_path, rows, caplog):
    """After the grace period both versions are in memory; the log says so, and the request gets its answer."""
    path = tmp_path / "bundle"
    write(path, 1)
    loading.detector_gate = gate = threading.Event()
    running = start(load=loading, bundles=(path,), reload_policy="resource", drain_grace_seconds=0.05)
    call = running.stub.Score.future(pb.ScoreRequest(inputs=array_to_tensor(rows(1))), timeout=60)
    running.until(lambda: running.server.pending_requests == 1)
    write(path, 2)
    loading.detector_gate = None

    running.server.reloader.reload()
    answer = running.score(rows(1))
    gate.set()

    assert answer.budget.version == "2"
    assert call.result(timeout=20).budget.version == "1"
    assert "event=not_released detector=standin version=1 seconds=0.05" in caplog.text


def test_a_version_that_is_loaded_when_the_server_begins_to_stop_takes_over(start, loading, tmp_path, rows):
    """Its place is empty: to bring the old one back would take as long again, and callers come until the drain."""
    write(tmp_path / "bundle", 1)
    bundles = (tmp_path / "bundle",)
    running = start(load=loading, bundles=bundles, reload_policy="resource", drain_delay_seconds=60)
    assert loading.entered.acquire(timeout=20)
    write(tmp_path / "bundle", 2)
    thread = begin_reload(running, loading)
    stopping = threading.Thread(target=running.server.stop)
    stopping.start()
    ready, not_serving = HealthCheckRequest(service=READY), HealthCheckResponse.NOT_SERVING
    running.until(lambda: running.health.Check(ready, timeout=20).status == not_serving)

    loading.gate.set()
    thread.join(timeout=20)
    answer = running.score(rows(1))
    running.server.stop_now()
    stopping.join(timeout=20)

    assert answer.budget.version == "2"
    assert running.sample("softkin_reloads_total", result="loaded") == 1


def test_the_old_version_is_loaded_again_when_the_new_one_fails(running, loading, tmp_path, rows):
    """From where it lay, which a link no longer points to; its drift watch and series are as they were."""
    old, new, link = tmp_path / "v1", tmp_path / "v2", tmp_path / "bundle"
    running.score(rows(5), detector="standin")
    running.until(lambda: running.sample("softkin_drift_rows", detector="standin", version="1") == 5)
    link.rename(old)
    link.symlink_to(old)
    write(new, 2)
    running.server.reloader.reload()
    before = running.series("softkin_detector", "softkin_drift", "softkin_alpha")
    link.unlink()
    link.symlink_to(new)
    loading.failures = [RuntimeError("out of memory")]

    running.server.reloader.reload()

    assert running.sample("softkin_reloads_total", result="failed") == 1
    assert running.series("softkin_detector", "softkin_drift", "softkin_alpha") == before
    assert running.score(rows(1), detector="standin").budget.version == "1"


def test_a_version_that_comes_back_on_another_device_is_shown_there(start, loading, tmp_path, rows, monkeypatch):
    """With device auto it takes the CPU where the GPU's memory is not free again; its drift watch goes on."""
    old, new, link = tmp_path / "v1", tmp_path / "v2", tmp_path / "bundle"

    def load(path, **options):
        detector = loading(path, **options)
        detector.device = "cuda" if len(loading.loaded) == 1 else "cpu"
        return detector

    monkeypatch.setattr("softkin.loading.cuda_driver_present", lambda: True)
    write(old, 1)
    write(new, 2)
    link.symlink_to(old)
    running = start(load=load, bundles=(link,), reload_policy="resource")
    running.score(rows(5))
    running.until(lambda: running.sample("softkin_drift_rows", detector="standin", version="1") == 5)
    link.unlink()
    link.symlink_to(new)
    loading.failures = [RuntimeError("out of memory")]

    running.server.reloader.reload()
    shown = list(running.series("softkin_detector_info"))
    fallback = running.sample("softkin_device_fallback")
    watched = running.sample("softkin_drift_rows", detector="standin", version="1")
    running.server.reloader.reload()

    assert len(shown) == 1
    assert "'device': 'cpu'" in shown[0]
    assert fallback == 1
    assert watched == 5
    assert [s for s in running.series("softkin_detector_info") if "'version': '1'" in s] == []


@pytest.mark.parametrize("when", ["built", "warmed up"])
def test_the_memory_of_a_version_that_fails_is_free_before_the_old_one_is_loaded_again(
    start, loading, tmp_path, rows, when
):
    """There is no room for both: what failed for want of memory would take it from the old one too."""
    old, new, link = tmp_path / "v1", tmp_path / "v2", tmp_path / "bundle"
    alive, made = [], []

    def exhausted(*held):
        raise MemoryError

    def fails(*held):
        try:
            exhausted(*held)
        except MemoryError:
            raise DeviceError("out of memory") from None

    def load(path, **options):
        alive.append([m() is not None for m in made])
        detector = loading(path, **options)
        made.append(weakref.ref(detector))
        if path == new:
            detector.warm_up = fails
            if when == "built":
                fails(detector)
        return detector

    write(old, 1)
    write(new, 2)
    link.symlink_to(old)
    running = start(load=load, bundles=(link,), reload_policy="resource")
    link.unlink()
    link.symlink_to(new)

    running.server.reloader.reload()

    assert alive == [[], [False], [False, False]]
    assert running.score(rows(1)).budget.version == "1"


def test_a_bundle_that_does_not_verify_costs_nobody_an_answer(running, loading, tmp_path, rows):
    """It is refused before the old version is dropped: nothing is loaded at all."""
    write(tmp_path / "bundle", 2)
    (tmp_path / "bundle" / "bank.safetensors").write_bytes(b"other")
    asked = len(loading.loaded)

    running.server.reloader.reload()

    assert len(loading.loaded) == asked
    assert running.score(rows(1), detector="standin").budget.version == "1"


@pytest.mark.parametrize("following", ["1", "2"])
@pytest.mark.parametrize("why", ["does not load", "holds another"])
def test_a_version_that_cannot_come_back_is_replaced_by_the_next_bundle_that_loads(
    running, loading, tmp_path, rows, why, following, caplog
):
    """Be it the same one, put back; until then callers are told to retry, and it is shown no longer."""
    caplog.set_level(logging.INFO)
    write(tmp_path / "bundle", 2)
    loading.failures = [RuntimeError("no"), RuntimeError("no") if why == "does not load" else None]
    running.server.reloader.reload()
    with pytest.raises(grpc.RpcError) as e:
        running.score(rows(1), detector="standin")
    shown = [s for s in running.series("softkin_detector_info") if "standin" in s]
    events = re.findall(r"event=(not_restored|unloaded) detector=standin version=1\b", caplog.text)
    write(tmp_path / "bundle", int(following))

    running.server.reloader.reload()

    assert e.value.code() is grpc.StatusCode.UNAVAILABLE
    assert shown == []
    assert events == ["not_restored", "unloaded"]
    assert "event=not_restored detector=standin version=1 reason=" in caplog.text
    assert running.score(rows(1), detector="standin").budget.version == following


@pytest.fixture
def gone(running, loading, tmp_path):
    """Version 1 was dropped for another bundle; that one failed, and so did version 1 when it should come back."""
    write(tmp_path / "bundle", 2)
    loading.failures = [RuntimeError("no"), RuntimeError("no")]
    running.server.reloader.reload()
    assert refusal(running) is grpc.StatusCode.UNAVAILABLE
    return running


def refusal(running):
    """What a caller of the version is told."""
    with pytest.raises(grpc.RpcError) as e:
        running.score(np.zeros((1, 2, 3), np.float32), detector="standin", version="1")
    return e.value.code()


def test_a_version_that_cannot_come_back_leaves_when_its_path_holds_another_name(gone, tmp_path, rows):
    """Callers who were told to retry would do so for ever: nothing will be loaded in its place any more."""
    standin_bundles.write(tmp_path / "bundle", "1", name="renamed")

    gone.server.reloader.reload()

    assert refusal(gone) is grpc.StatusCode.NOT_FOUND
    assert gone.score(rows(1), detector="renamed").budget.version == "1"


@pytest.mark.parametrize("name", ["standin", "renamed"])
def test_a_version_that_cannot_come_back_gives_way_to_what_was_loaded_by_hand(gone, loading, tmp_path, rows, name):
    """The path holds now what is loaded already; that gets the labels, where it has the same name."""
    standin_bundles.write(tmp_path / "bundle", "3", name=name)
    gone.server._loader.add(tmp_path / "bundle")
    gone.server._registry.set_label(name, "3", "canary")

    gone.server.reloader.reload()

    assert refusal(gone) is grpc.StatusCode.NOT_FOUND
    assert gone.score(rows(1), detector=name).budget.version == "3"


def test_a_version_that_cannot_come_back_can_be_unloaded(gone, rows):
    """Though it is the only one of its name, and labelled: it serves nobody."""
    gone.server._loader.unload("standin", "1")

    assert refusal(gone) is grpc.StatusCode.NOT_FOUND
    assert gone.score(rows(1)).budget.detector == "other"  # which need not be named any more
