"""Reloading while the server answers: nobody notices, but for the version that answers."""

from __future__ import annotations

import gc
import logging
import threading
import weakref

import grpc
import numpy as np
import pytest

import standin_bundles
from softkin.converters import array_to_tensor
from softkin.v1 import outlier_pb2 as pb

RELOADS = 100


def shifts(text):
    """The shift of a test's bundle of that version."""
    return int(text) * 1000


def write(path, version, **options):
    """A bundle whose shift tells its version."""
    return standin_bundles.write(path, str(version), **{"shift": shifts(version), **options})


class Callers:
    """Threads that score without a pause, and check that every answer is that of the version it names."""

    def __init__(self, running, **fields):
        self.running, self.fields = running, fields
        self.versions, self.failures, self.answers = [], [], 0
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(k, k == 0)) for k in range(3)]

    def __enter__(self):
        for t in self.threads:
            t.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        for t in self.threads:
            t.join(timeout=60)

    def requests(self, k):
        """Rows and requests without end."""
        n = 0
        while not self.ended.is_set():
            n += 1
            rows = np.full((1 + (n + k) % 5, 2, 3), n % 7, np.float32)
            yield rows, pb.ScoreRequest(inputs=array_to_tensor(rows), **self.fields)

    def run(self, k, stream):
        """Score until ended."""
        try:
            if stream:
                sent = []

                def messages():
                    for rows, request in self.requests(k):
                        sent.append(rows)
                        yield pb.ScoreStreamRequest(request=request)

                for message in self.running.stub.ScoreStream(messages(), timeout=120):
                    for answer in message.answers:
                        assert answer.WhichOneof("answer") == "response", answer.error
                        self.check(sent.pop(0), answer.response)
            else:
                for rows, request in self.requests(k):
                    self.check(rows, self.running.stub.Score(request, timeout=30))
        except Exception as e:
            self.failures.append(e)

    def check(self, rows, response):
        """Compare with the arithmetic of the version that the answer names."""
        expected = rows.reshape(len(rows), -1).sum(axis=1) + shifts(response.budget.version)
        assert list(response.outlier_score) == expected.tolist(), response.budget
        self.answers += 1
        if not self.versions or self.versions[-1] != response.budget.version:
            self.versions.append(response.budget.version)


def test_100_reloads_under_load_fail_nobody_and_every_answer_is_of_the_version_it_names(start, tmp_path, loading):
    """Unary calls and a stream; each new version is waited for, so every one of the hundred was met by callers."""
    path = tmp_path / "bundle"
    write(path, 0)
    running = start(load=loading, bundles=(path,), drift_state=tmp_path / "state")

    with Callers(running) as callers:
        running.until(lambda: "0" in callers.versions or callers.failures)
        for version in range(1, RELOADS + 1):
            write(path, version)
            running.server.reloader.reload()
            running.until(lambda v=version: str(v) in callers.versions or callers.failures)

    assert callers.failures == []
    assert {int(v) for v in callers.versions} == set(range(RELOADS + 1)), "some version never answered"
    assert callers.answers > RELOADS
    assert running.sample("softkin_reloads_total", result="loaded") == RELOADS
    assert running.sample("softkin_reloads_total", result="failed") == 0
    [info] = running.series("softkin_detector_info")
    assert f"'version': '{RELOADS}'" in info
    assert len(running.series("softkin_drift_rows")) == len(running.series("softkin_alpha")) == 1
    running.until(lambda: sum(running.series("softkin_rows_total").values()) > callers.answers)


def test_a_version_that_is_served_no_longer_gives_its_memory_back(start, tmp_path, loading, rows):
    """At once, without the garbage collector: neither idle threads nor the server's tables hold it."""
    path = tmp_path / "bundle"
    write(path, 1)
    made = []

    def load(*arguments, **options):
        detector = loading(*arguments, **options)
        made.append(weakref.ref(detector))
        return detector

    running = start(load=load, bundles=(path,))
    running.score(rows(3))
    gc.disable()
    try:
        write(path, 2)
        running.server.reloader.reload()
        running.until(lambda: made[0]() is None)
    finally:
        gc.enable()

    assert made[1]() is not None


def test_requests_in_flight_finish_on_the_version_they_began_with(start, tmp_path, loading, rows):
    """While later ones are already answered by the new version."""
    path = tmp_path / "bundle"
    write(path, 1)
    loading.detector_gate = gate = threading.Event()
    running = start(load=loading, bundles=(path,), workers=4)  # one more than the old ones can hold
    request = pb.ScoreRequest(inputs=array_to_tensor(rows(1)))
    old = [running.stub.Score.future(request, timeout=60) for _ in range(3)]
    running.until(lambda: running.server.pending_requests == 3)

    write(path, 2)
    loading.detector_gate = None
    running.server.reloader.reload()
    new = running.stub.Score(request, timeout=60)
    running.until(lambda: running.server.pending_requests == 3)
    gate.set()

    answers = [*(f.result(timeout=30) for f in old), new]
    assert [a.budget.version for a in answers] == ["1", "1", "1", "2"]
    assert [a.outlier_score[0] for a in answers] == [15 + 1000] * 3 + [15 + 2000]


def test_a_path_that_has_not_changed_is_left_alone(start, tmp_path, loading):
    """Not even read: its detector stays the same object."""
    a, b = tmp_path / "a", tmp_path / "b"
    write(a, 1)
    write(b, 1, name="other")
    running = start(load=loading, bundles=(a, b))
    write(b, 2, name="other")

    running.server.reloader.reload()

    assert [p.name for p in loading.loaded] == ["a", "b", "b"]
    assert {r: running.sample("softkin_reloads_total", result=r) for r in ("loaded", "unchanged", "failed")} == {
        "loaded": 1,
        "unchanged": 1,
        "failed": 0,
    }


def test_the_same_version_with_another_digest_is_replaced(start, tmp_path, loading, rows):
    """Its series too: one digest at a time, and a drift watch that begins anew; what was counted stays."""
    path = tmp_path / "bundle"
    first = write(path, 1)
    running = start(load=loading, bundles=(path,))
    running.score(rows(4))
    second = write(path, 1, shift=7)

    running.server.reloader.reload()

    answer = running.score(rows(1))
    assert (answer.budget.digest, answer.outlier_score[0]) == (second, 15 + 7)
    labels = {"detector": "standin", "version": "1"}
    assert running.sample("softkin_detector_info", **labels, digest=first, device="cpu") is None
    assert running.sample("softkin_detector_info", **labels, digest=second, device="cpu") == 1
    running.until(lambda: running.sample("softkin_drift_rows", **labels) == 1)
    running.until(lambda: sum(running.series("softkin_rows_total").values()) == 5)


def listed(running):
    """Versions with their labels, as callers see them."""
    return {
        d.version: list(d.labels) for d in running.stub.ListDetectors(pb.ListDetectorsRequest(), timeout=20).detectors
    }


def test_a_new_version_gets_the_labels_of_the_one_from_its_path(start, tmp_path, loading, rows):
    """And the old one is gone; another path's version keeps its own."""
    a, b = tmp_path / "a", tmp_path / "b"
    write(a, 1)
    write(b, 2)
    running = start(load=loading, bundles=(a, b), admin_port=0)
    with running.admin() as admin:
        admin.set_label("standin", "1", "stable")
        admin.set_label("standin", "2", "canary")
    write(a, 3)

    running.server.reloader.reload()

    assert listed(running) == {"2": ["canary"], "3": ["stable"]}
    assert running.score(rows(1)).budget.version == "3"
    with pytest.raises(grpc.RpcError) as e:
        running.score(rows(1), version="1")
    assert e.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(("changed", "served"), [("a", "2"), ("b", "3")])
def test_without_labels_the_default_stays_with_its_path(start, tmp_path, loading, rows, changed, served):
    """The last path's version serves; a new one from another path does not take its place."""
    for name, version in (("a", 1), ("b", 2)):
        write(tmp_path / name, version)
    running = start(load=loading, bundles=(tmp_path / "a", tmp_path / "b"))
    write(tmp_path / changed, 3)

    running.server.reloader.reload()

    assert running.score(rows(1)).budget.version == served


def test_a_bundle_of_another_name_comes_beside_the_old_one_which_goes_when_nothing_points_to_it(
    start, tmp_path, loading, caplog
):
    """The only version of a name stays: its callers have nothing else."""
    caplog.set_level(logging.INFO)
    a, b, c = (tmp_path / n for n in "abc")
    write(a, 1)
    write(b, 2)
    write(c, 1, name="third")
    running = start(load=loading, bundles=(a, b, c))
    write(a, 1, name="new")
    write(c, 1, name="newer")

    running.server.reloader.reload()

    answer = running.stub.ListDetectors(pb.ListDetectorsRequest(), timeout=20)
    assert [(d.name, d.version) for d in answer.detectors] == [
        ("new", "1"),
        ("newer", "1"),
        ("standin", "2"),
        ("third", "1"),
    ]
    assert running.sample("softkin_reloads_total", result="loaded") == 2
    assert "event=kept detector=third version=1 reason=" in caplog.text
    assert "event=unloaded detector=standin version=1 " in caplog.text


def test_a_bundle_of_another_name_does_not_take_the_place_of_the_default_of_that_name(start, tmp_path, loading, rows):
    """Callers of the other path's detector keep what they have; it gets the label that says so."""
    a, b = tmp_path / "a", tmp_path / "b"
    write(a, 1)
    write(b, 2, name="other")
    running = start(load=loading, bundles=(a, b))
    write(a, 3, name="other")

    running.server.reloader.reload()

    assert running.score(rows(1), detector="other").budget.version == "2"
    assert listed(running) == {"1": [], "2": ["stable"], "3": []}


def test_another_bundle_of_a_version_that_another_path_holds_is_refused(start, tmp_path, loading, caplog):
    """Two bundles of one version could not be told apart; the other path still reloads."""
    a, b = tmp_path / "a", tmp_path / "b"
    write(a, 1)
    write(b, 2)
    running = start(load=loading, bundles=(a, b))
    write(a, 2, shift=5)

    running.server.reloader.reload()

    assert listed(running) == {"1": [], "2": []}
    assert running.sample("softkin_reloads_total", result="failed") == 1
    assert "version '2' is loaded already, from another bundle" in caplog.text


def test_requests_during_a_reload_lead_to_one_more_and_no_further(start, tmp_path, loading):
    """A hundred signals while paths are being read: what they were about may have been missed, so one more reading."""
    path = tmp_path / "bundle"
    write(path, 1)
    running = start(load=loading, bundles=(path,))
    loading.gate = threading.Event()
    assert loading.entered.acquire(timeout=20)
    write(path, 2)
    running.server.reloader.request()
    assert loading.entered.acquire(timeout=20)

    write(path, 3)
    for _ in range(100):
        running.server.reloader.request()
    loading.gate.set()
    running.until(lambda: sum(running.series("softkin_reloads_total").values()) == 2)
    running.server.reloader.request()
    running.until(lambda: running.sample("softkin_reloads_total", result="unchanged") == 1)

    assert list(listed(running)) == ["3"]
    assert running.sample("softkin_reloads_total", result="loaded") == 2
    assert len(loading.loaded) == 3


def test_a_server_that_stops_takes_over_nothing_that_is_still_loading(start, tmp_path, loading):
    """stop() does not wait for it, and what it has loaded then is dropped."""
    path = tmp_path / "bundle"
    write(path, 1)
    running = start(load=loading, bundles=(path,))
    assert loading.entered.acquire(timeout=20)
    loading.gate = threading.Event()
    write(path, 2)
    running.server.reloader.request()
    assert loading.entered.acquire(timeout=20)

    running.server.reloader.request()
    running.server.stop()
    changing = running.server.changing
    loading.gate.set()
    running.until(lambda: "reload" not in {t.name for t in threading.enumerate()})

    assert changing
    assert sum(running.series("softkin_reloads_total").values()) == 1
    assert running.sample("softkin_reloads_total", result="failed") == 1
    assert not running.server.changing
    assert "'version': '1'" in next(iter(running.series("softkin_detector_info")))
