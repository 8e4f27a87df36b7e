"""What /metrics shows is what was sent, errors included."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import standin_bundles
from softkin import metrics_port
from softkin.v1 import outlier_pb2 as pb
from standin import StandIn

SERVICE = "softkin.v1.OutlierService"


def scrape(running):
    """The text of /metrics, and a look-up by name and labels."""
    url = f"http://127.0.0.1:{running.server.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=20) as answer:
        text = answer.read().decode()
    samples = {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for f in text_string_to_metric_families(text)
        for s in f.samples
    }
    return text, lambda name, **labels: samples.get((name, tuple(sorted(labels.items()))))


@pytest.mark.parametrize("sent", [b"", b"GET /metrics HT", b"GET /metrics HTTP/1.1\r\nHost: softkin\r\n"])
def test_who_falls_silent_is_cut_off_without_a_word(start, monkeypatch, capfd, sent):
    """Each connection holds a thread, and scrapers vanish: in a year there would be no thread left."""
    monkeypatch.setattr(metrics_port, "SILENT_SECONDS", 0.05)
    running = start(StandIn())

    with socket.create_connection(("127.0.0.1", running.server.metrics_port), timeout=20) as silent:
        silent.sendall(sent)

        assert silent.recv(1) == b""

    assert scrape(running)[0]
    running.server.stop_now()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("path", ["/", "/healthz", "/v2/health/ready", "/metrics/x"])
def test_a_probe_of_any_other_path_is_not_told_that_all_is_well(shared_server, path):
    """The metrics are there also while the server is not ready: 404, and who tells."""
    with pytest.raises(urllib.error.HTTPError) as e:
        urllib.request.urlopen(f"http://127.0.0.1:{shared_server.server.metrics_port}{path}", timeout=20)

    assert e.value.code == 404
    assert e.value.read().decode() == (
        "only /metrics is here; whether the server is ready is told by grpc.health.v1.Health: softkin healthcheck\n"
    )


def method(name, **more):
    """Labels of one method."""
    return {"grpc_type": "UNARY", "grpc_service": SERVICE, "grpc_method": name, **more}


def send_mixed_traffic(running, rows):
    """3 answers with 10 rows, 2 invalid requests, 1 not found, 1 description."""
    for n in (1, 2, 7):
        running.score(rows(n))
    for request in ({"alpha": 2.0}, {"num_neighbors": 99}):
        with pytest.raises(grpc.RpcError):
            running.score(rows(1), **request)
    with pytest.raises(grpc.RpcError):
        running.score(rows(1), detector="evil-label-value")
    running.stub.GetDetector(pb.GetDetectorRequest(), timeout=20)
    # A call is counted when it has ended, which its caller may know first.
    running.until(lambda: sum(running.series("grpc_server_handled_total").values()) == 7)


def test_calls_are_counted_by_method_and_status_errors_included(server, rows):
    """Started = sum of handled = observations of the handling time."""
    send_mixed_traffic(server, rows)

    _, value = scrape(server)

    assert value("grpc_server_started_total", **method("Score")) == 6
    assert value("grpc_server_handled_total", **method("Score", grpc_code="OK")) == 3
    assert value("grpc_server_handled_total", **method("Score", grpc_code="INVALID_ARGUMENT")) == 2
    assert value("grpc_server_handled_total", **method("Score", grpc_code="NOT_FOUND")) == 1
    assert value("grpc_server_handling_seconds_count", **method("Score")) == 6
    assert value("grpc_server_handled_total", **method("GetDetector", grpc_code="OK")) == 1
    assert value("softkin_rejected_total", reason="invalid") == 2
    assert value("softkin_rejected_total", reason="not_found") == 1
    assert value("softkin_rejected_total", reason="queue_full") == 0


def test_rows_verdicts_and_p_values_are_those_of_the_answers(server, rows):
    """Counts of rows, verdicts and every p-value bucket equal what the callers got."""
    answers = [server.score(rows(n)) for n in (1, 2, 7)]
    p = np.concatenate([a.p_value for a in answers])
    outliers = sum(sum(a.is_outlier) for a in answers)
    detector = {"detector": "standin", "version": "1"}

    _, value = scrape(server)

    assert value("softkin_rows_total", verdict="outlier", **detector) == outliers
    assert value("softkin_rows_total", verdict="inlier", **detector) == 10 - outliers
    assert value("softkin_p_value_count", **detector) == 10
    assert value("softkin_p_value_bucket", le="0.05", **detector) == (p <= 0.05).sum()
    assert value("softkin_p_value_bucket", le="1.0", **detector) == 10
    assert value("softkin_p_value_sum", **detector) == pytest.approx(p.sum())
    assert value("softkin_outlier_score_bucket", le="+Inf", **detector) == 10
    assert value("softkin_request_rows_count") == 3
    assert value("softkin_request_rows_sum") == 10
    for stage in ("decode", "queue", "infer", "calibrate", "encode"):
        assert value("softkin_stage_seconds_count", stage=stage) == 3


def test_what_a_caller_sends_never_becomes_a_label(server, rows):
    """Otherwise anyone could grow the server's memory and the scraper's."""
    send_mixed_traffic(server, rows)
    with pytest.raises(grpc.RpcError):
        server.channel.unary_unary(f"/{SERVICE}/EvilMethod")(b"", timeout=20)

    text, _ = scrape(server)

    assert "evil" not in text.lower()


def test_gauges_say_what_is_loaded(start):
    """Digest, device, alpha in force and sizes, per detector and version; /metrics before ready shows none."""
    detector = StandIn()
    running = start(detector, ready=False, alpha=0.1)
    labels = {"detector": "standin", "version": "1"}
    _, before = scrape(running)

    running.server.make_ready()
    _, value = scrape(running)

    info = {"digest": detector.digest, "device": "cpu", **labels}
    assert before("softkin_detector_info", **info) is None
    assert value("softkin_detector_info", **info) == 1
    assert value("softkin_alpha", **labels) == 0.1
    assert value("softkin_calibration_rows", **labels) == 99
    assert value("softkin_bank_rows", **labels) == 7
    assert value("softkin_rows_total", verdict="outlier", **labels) == 0
    assert value("softkin_build_info", version="0") == 1


def test_ready_is_1_from_the_last_bundle_until_the_server_stops(start, loading, root):
    """While the second bundle hangs, the first one's series look as if all were well, and callers are refused."""
    bundles = [root / "v2", root / "v3"]
    running = start(ready=False, load=loading, bundles=bundles, drain_delay_seconds=600)
    seen = []

    def wanted():
        seen.append((len(running.series("softkin_detector_info")), running.sample("softkin_ready")))
        return True

    assert running.server.make_ready(wanted)
    assert seen[:2] == [(0, 0), (1, 0)]
    assert running.sample("softkin_ready") == 1
    stopping = threading.Thread(target=running.server.stop)
    stopping.start()
    running.until(lambda: scrape(running)[1]("softkin_ready") == 0)
    running.server.stop_now()
    stopping.join(timeout=20)


@pytest.mark.parametrize(
    ("asked", "device", "offered", "fallback"),
    [("auto", "cpu", True, 1), ("auto", "cuda", True, 0), ("cpu", "cpu", True, 0), ("auto", "cpu", False, 0)],
)
def test_a_silent_fall_back_to_the_cpu_is_shown(start, monkeypatch, asked, device, offered, fallback):
    """1 only when auto took the CPU though there is an NVIDIA driver."""
    from softkin import loading

    monkeypatch.setattr(loading, "cuda_driver_present", lambda: offered)
    detector = StandIn()
    detector.device = device

    _, value = scrape(start(detector, device=asked))

    assert value("softkin_device_fallback") == fallback


def test_one_of_several_that_fell_back_is_shown_from_its_load_until_it_is_unloaded(
    start, monkeypatch, tmp_path, loading
):
    """What runs elsewhere changes nothing about it."""
    monkeypatch.setattr("softkin.loading.cuda_driver_present", lambda: True)
    standin_bundles.write(tmp_path / "two", "2")
    detector = StandIn()
    detector.device = "cuda"
    running = start(detector, load=loading, admin_port=0, bundle_root=tmp_path)
    found = [running.sample("softkin_device_fallback")]

    with running.admin() as admin:
        for change in (lambda: admin.load("two"), lambda: admin.unload("standin", "2")):
            change()
            found.append(running.sample("softkin_device_fallback"))

    assert found == [0, 1, 0]
