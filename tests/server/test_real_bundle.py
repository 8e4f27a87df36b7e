"""The service on a real bundle: what a user of the commands sees."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import urllib.request

import numpy as np
import onnxruntime as ort
import pytest

from softkin import Client, Detector
from softkin.verdicts import GUARANTEES

SOFTKIN = [sys.executable, "-m", "softkin.cli"]


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """Where the server keeps its drift state."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def served(tiny, state):
    """`softkin serve` as its own process: the process, its gRPC target, its metrics address and its log."""
    flags = ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", "--device", "cpu"]
    flags += ["--drift-state", str(state), "--confidence", "0.9"]
    process = subprocess.Popen([*SOFTKIN, "serve", str(tiny.path), *flags], stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    log = []
    for line in process.stderr:
        log.append(line)
        if "event=serving" in line:
            break
    ports = {k: int(re.search(rf"\b{k}=(\d+)", log[-1])[1]) for k in ("port", "metrics_port")}
    yield process, f"127.0.0.1:{ports['port']}", f"http://127.0.0.1:{ports['metrics_port']}/metrics", log
    process.send_signal(signal.SIGTERM)
    with process.stderr:
        rest = process.stderr.read()
    assert process.wait(timeout=30) == 0, "".join(log) + rest
    watchdog.cancel()


def run(*arguments: str) -> subprocess.CompletedProcess:
    """A softkin command."""
    return subprocess.run([*SOFTKIN, *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("neighbors", [0, 3], ids=["plain", "with evidence"])
def test_scores_over_the_wire_equal_those_in_process_bit_for_bit(served, tiny, neighbors):
    """Every array of `Scores`, and the budget but for the device's own timing."""
    x = np.concatenate([tiny.inliers[:40], tiny.outliers[:40]])
    expected = Detector.load(tiny.path, device="cpu").score(x, alpha=0.1, num_neighbors=neighbors)

    with Client(served[1]) as client:
        found = client.score(x, alpha=0.1, confidence=0.95, num_neighbors=neighbors)

    for name in ("outlier_score", "p_value", "is_outlier", "predicted_class", "credibility", "confidence"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.dtype == b.dtype, name
        assert a.tobytes() == b.tobytes(), name
    assert found.class_p_values.tobytes() == expected.class_p_values.tobytes()
    assert found.budget == expected.budget
    if neighbors:
        for name in ("ids", "labels", "distances", "shares"):
            assert getattr(found.neighbors, name).tobytes() == getattr(expected.neighbors, name).tobytes(), name
        assert found.neighbors.layers == expected.neighbors.layers
        assert found.parts.names == expected.parts.names
        assert found.parts.values.tobytes() == expected.parts.values.tobytes()
    else:
        assert found.neighbors is found.parts is None


@pytest.mark.parametrize("seed", [None, 41], ids=["plain", "smoothed"])
@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_every_guarantee_over_the_wire_is_the_one_in_process(served, tiny, guarantee, seed):
    """P-values, verdicts and budget, bit for bit; an uneven alpha, so that smoothing matters."""
    x = np.concatenate([tiny.inliers[:90], tiny.outliers[:20]])
    options = {"alpha": 0.0777, "guarantee": guarantee, "smoothing_seed": seed}
    expected = Detector.load(tiny.path, device="cpu").score(x, confidence=0.9, **options)

    with Client(served[1]) as client:
        found = client.score(x, **options)

    assert found.budget == expected.budget
    assert (found.budget.guarantee, found.budget.confidence) == (guarantee, 0.9)
    for name in ("p_value", "is_outlier", "class_p_values", "credibility", "confidence"):
        assert getattr(found, name).tobytes() == getattr(expected, name).tobytes(), name
    assert found.is_outlier[90:].any()


def test_the_drift_watch_sees_the_rows_scored(served, tiny):
    """Over the wire and by the command: every row counts, and outliers raise the evidence."""
    with Client(served[1]) as client:
        before = client.drift()
        client.score(tiny.inliers)
        quiet = client.drift().report
        client.score(np.concatenate([tiny.outliers] * 4))
        loud = client.drift().report
    shown = json.loads(run("drift", "--target", served[1], "--json").stdout)

    assert before.detector == "tiny"
    assert quiet.rows == before.report.rows + 500
    assert loud.rows == quiet.rows + 200 == shown["report"]["rows"]
    assert loud.log10_martingale > quiet.log10_martingale
    assert loud.max_log10_martingale >= max(quiet.max_log10_martingale, 2)
    assert loud.alarm
    assert shown["alarm"]
    assert shown["report"]["max_log10_martingale"] == loud.max_log10_martingale


def test_a_folder_of_drift_state_serves_one_server(served, tiny, state):
    """Exit status 1 and one line that says what to do; the server that has it goes on."""
    flags = ("--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", "--device", "cpu")

    result = run("serve", str(tiny.path), *flags, "--drift-state", str(state))

    assert result.returncode == 1
    assert f"error: {state}: another server keeps its drift state here; give each its own" in result.stderr
    assert "Traceback" not in result.stderr
    assert run("healthcheck", "--target", served[1]).returncode == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--guarantee", "certified", "--alpha", "0.004"), "300 calibration rows certify nothing below 0.00993609"),
        (("--guarantee", "class_conditional", "--alpha", "0.004"), "calibration rows, which cannot give a p-value bel"),
    ],
)
def test_a_promise_that_the_bundle_cannot_keep_is_not_served(tiny, flags, message):
    """Exit status 1, before any request could be refused for it."""
    ports = ("--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", "--device", "cpu")

    result = run("serve", str(tiny.path), *ports, *flags)

    assert result.returncode == 1
    assert "error: --alpha: got 0.004, but " in result.stderr
    assert message in result.stderr


def test_log_and_metrics_tell_where_it_runs(served):
    """The device is the session's own word, in the log and as a metric."""
    assert any("event=loaded" in line and "device=cpu" in line for line in served[3])
    with urllib.request.urlopen(served[2], timeout=10) as response:
        text = response.read().decode()
    assert re.search(r'softkin_detector_info\{.*device="cpu".*\} 1\.0', text)


def test_the_score_command_prints_verdicts_and_a_summary(served, tiny, tmp_path):
    """A table for people, JSON lines for programs."""
    file = tmp_path / "data.npz"
    np.savez(file, x_test=np.concatenate([tiny.inliers[:5], tiny.outliers[:5]]))

    table = run("score", "--target", served[1], str(file), "--neighbors", "3")
    assert table.returncode == 0, table.stderr
    assert "10 rows" in table.stdout
    assert "with this calibration set, at confidence 0.9 (300 calibration rows; tiny 1 on cpu)" in table.stdout

    lines = [json.loads(s) for s in run("score", "--target", served[1], str(file), "--json").stdout.splitlines()]
    assert len(lines) == 11
    expected = Detector.load(tiny.path, device="cpu").score(np.load(file)["x_test"])
    assert [row["p_value"] for row in lines[:10]] == expected.p_value.tolist()

    options = ("--guarantee", "certified", "--alpha", "0.2", "--confidence", "0.75", "--smoothing-seed", "6", "--json")
    lines = [json.loads(s) for s in run("score", "--target", served[1], str(file), *options).stdout.splitlines()]
    expected = Detector.load(tiny.path, device="cpu").score(
        np.load(file)["x_test"], guarantee="certified", alpha=0.2, confidence=0.75, smoothing_seed=6
    )
    assert [row["p_value"] for row in lines[:10]] == expected.p_value.tolist()
    assert lines[10]["budget"] == {"rows": 10, "flagged": int(expected.is_outlier.sum()), **vars(expected.budget)}


def test_healthcheck_and_inspect_answer(served, tiny):
    """Exit status 0, and what the bundle is."""
    assert run("healthcheck", "--target", served[1]).returncode == 0
    assert run("healthcheck", "--target", "127.0.0.1:1").returncode == 1
    described = json.loads(run("inspect", str(tiny.path), "--json").stdout)
    assert described["name"] == "tiny"
    assert described["calibration_size"] == 300
    assert sum(described["predicted_class_rows"]) == 300
    assert described["certificate"]["alpha"] == described["default_alpha"] == 0.05


def test_inspect_proves_the_files_where_it_is_asked_to(tiny_copy, monkeypatch):
    """The manifest of a damaged copy is that of a whole one."""
    monkeypatch.setenv("COLUMNS", "160")
    command = "inspect", str(tiny_copy), "--verify"
    whole = run(*command)
    content = bytearray((tiny_copy / "bank.safetensors").read_bytes())
    content[-1] ^= 1
    (tiny_copy / "bank.safetensors").write_bytes(content)

    damaged = run(*command)

    assert whole.returncode == 0
    assert re.search(r"size .* MB in \d files, every one whole", whole.stdout)
    assert (damaged.returncode, damaged.stdout) == (1, "")
    assert damaged.stderr.startswith(f"softkin: error: {tiny_copy}/bank.safetensors: its sha256 is not the manifest's")
    assert "whole" not in run(*command[:2]).stdout


def test_a_damaged_bundle_is_not_served(tiny_copy):
    """Exit status 1 and one line that names the file."""
    (tiny_copy / "bank.safetensors").write_bytes(b"\0" * 100)

    result = run("serve", str(tiny_copy), "--host", "127.0.0.1", "--port", "0", "--metrics-port", "0")

    assert result.returncode == 1
    assert re.search(r"error: .*bank\.safetensors: has 100 bytes, the manifest says \d+", result.stderr)
    assert "Traceback" not in result.stderr


def test_cuda_without_a_device_refuses_to_start(tiny, cuda_works):
    """--device cuda never falls back; where CUDA works, it serves there."""
    if cuda_works:
        assert Detector.load(tiny.path, device="cuda").device == "cuda"
        return
    result = run(
        "serve", str(tiny.path), "--device", "cuda", "--host", "127.0.0.1", "--port", "0", "--metrics-port", "0"
    )

    assert result.returncode == 1
    assert "device cuda:0: onnxruntime could not start on CUDA" in result.stderr
    assert "use device cpu" in result.stderr


def test_every_detector_computes_in_as_many_threads_as_the_server_was_told(start, tiny, monkeypatch):
    """By default each takes all cores: several servers on one machine would get in each other's way."""
    told = []

    class Told(ort.SessionOptions):
        """Notes what it is told."""

        def __setattr__(self, name, value):
            if name == "intra_op_num_threads":
                told.append(value)
            super().__setattr__(name, value)

    monkeypatch.setattr(ort, "SessionOptions", Told)

    start(bundles=(tiny.path,), device="cpu", threads=3)

    assert set(told) == {3}
