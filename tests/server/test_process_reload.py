"""`softkin serve` and its signals: SIGHUP reloads real bundles, and never keeps the process from stopping."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

import resealed
from softkin import Client, Detector
from softkin.admin_client import AdminClient
from softkin.bundle import BANK, MANIFEST
from softkin.errors import SoftkinError


class Serving:
    """`softkin serve` with an admin port; arguments are its own."""

    def __init__(self, *arguments):
        flags = ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", "--admin-port", "0", "--threads", "1"]
        command = [sys.executable, "-m", "softkin.cli", "serve", *map(str, arguments), *flags, "--device", "cpu"]
        self.popen = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.log = []
        self.watchdog = threading.Timer(120, self.popen.kill)
        self.watchdog.start()

    def until_ready(self):
        """Read the log until it serves; returns itself."""
        line = self.read_until("event=serving")
        self.port, self.metrics_port, self.admin_port = (
            int(re.search(rf"\b{name}=(\d+)", line)[1]) for name in ("port", "metrics_port", "admin_port")
        )
        return self

    def read_until(self, text):
        """The next log line that has the text."""
        for line in self.popen.stderr:
            self.log.append(line)
            if text in line:
                return line
        raise AssertionError(f"no {text!r} in the log: {''.join(self.log)}")

    def hang_up(self):
        """SIGHUP; returns what the log says at the end of the reload."""
        self.popen.send_signal(signal.SIGHUP)
        return self.read_until("event=reloaded").split("event=reloaded ")[1].strip()

    def stop(self):
        """SIGTERM; returns the exit status."""
        self.popen.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self):
        """The exit status, once the log has ended."""
        self.log.extend(self.popen.stderr)
        return self.popen.wait(timeout=60)

    def events(self, *names):
        """Those of these events that the log holds, in order."""
        return [e for e in re.findall(r"event=(\w+)", "".join(self.log)) if e in names]

    def client(self):
        """A client of the scores."""
        return Client(f"127.0.0.1:{self.port}")

    def metrics(self):
        """The text of /metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=20) as answer:
            return answer.read().decode()


@pytest.fixture
def starting():
    """Starts `softkin serve`; none is left behind."""
    started = []

    def run(*arguments):
        started.append(Serving(*arguments))
        return started[-1]

    yield run
    for s in started:
        s.popen.kill()
        s.popen.wait()
        s.popen.stderr.close()
        s.watchdog.cancel()
        s.watchdog.join()


@pytest.fixture
def serving(starting):
    """Starts `softkin serve`, and waits until it does."""
    return lambda *arguments: starting(*arguments).until_ready()


@pytest.fixture
def path(tiny, tmp_path):
    """A configured path that holds version 1."""
    return resealed.copy(tiny.path, tmp_path / "bundle")


def test_sighup_serves_what_the_path_holds_now(serving, tiny, tmp_path, path):
    """A new version under load, a damaged one that changes nothing, and the first one again: every answer is right."""
    server = serving(path)
    expected = Detector.load(tiny.path, device="cpu").score(tiny.inliers[:30]).outlier_score.tolist()
    ended, answered, failures = threading.Event(), set(), []

    def call():
        try:
            with server.client() as client:
                while not ended.is_set():
                    found = client.score(tiny.inliers[:30])
                    assert found.outlier_score.tolist() == expected
                    answered.add(found.budget.version)
        except Exception as e:
            failures.append(e)

    callers = [threading.Thread(target=call) for _ in range(2)]
    for c in callers:
        c.start()
    ends, lines = [], []
    for version, damaged in (("2", False), ("3", True), ("3", True), ("1", False), ("1", False)):
        resealed.copy(tiny.path, path, version=version)
        if damaged:
            (path / BANK).write_bytes(b"no bank")
        ends.append(server.hang_up())
        with server.client() as client:
            lines.append(client.score(tiny.inliers[:1]).budget.version)
    ended.set()
    for c in callers:
        c.join(timeout=30)

    assert failures == []
    assert ends == [
        "loaded=1 unchanged=0 failed=0",
        "loaded=0 unchanged=0 failed=1",
        "loaded=0 unchanged=0 failed=1",
        "loaded=1 unchanged=0 failed=0",
        "loaded=0 unchanged=1 failed=0",
    ]
    assert lines == ["2", "2", "2", "1", "1"]
    assert answered >= {"1", "2"}
    assert 'softkin_reloads_total{result="failed"} 2.0' in server.metrics()
    assert server.stop() == 0
    [failed, _] = [line for line in server.log if "event=reload_failed" in line]
    assert re.search(
        r'level=ERROR event=reload_failed path=\S+ error="\S+bank.safetensors: has 7 bytes, the mani', failed
    )
    assert not any("Traceback" in line for line in server.log)


def hold(path):
    """Let the next reading of the manifest block: a pipe stands in its place."""
    (path / MANIFEST).unlink()
    os.mkfifo(path / MANIFEST)


def let_go(path):
    """End a reading that blocks; returns once a reader is there."""
    with (path / MANIFEST).open("wb"):
        pass


def test_sigterm_during_a_reload_finishes_what_was_accepted_and_exits_0(serving, tiny, path):
    """The reload hangs in the middle of a file; callers do not notice, and the process does not wait for it."""
    server = serving(path)
    hold(path)
    server.popen.send_signal(signal.SIGHUP)
    server.read_until("event=reloading")
    with ThreadPoolExecutor(4) as pool:
        answers = []
        for _ in range(4):
            with server.client() as client:
                answers.append(pool.submit(client.score, tiny.inliers[:50]).result(timeout=30).budget.version)

    status = server.stop()

    assert answers == ["1"] * 4
    assert status == 0
    assert any("event=stopped" in line and "abandoned_requests=0" in line for line in server.log)


def test_sigterm_during_a_load_by_the_admin_service_does_not_wait_for_it(serving, tiny, tmp_path, path):
    """It hangs in the middle of a file too, in a thread that the interpreter would wait for."""
    server = serving(path, "--bundle-root", tmp_path)
    following = resealed.copy(tiny.path, tmp_path / "next", version="2")
    hold(following)
    with ThreadPoolExecutor(1) as pool, AdminClient(f"127.0.0.1:{server.admin_port}") as admin:
        load = pool.submit(admin.load, "next")
        with (following / MANIFEST).open("wb"):  # once a reader is there
            status = server.stop()
        failure = load.exception(timeout=30)

    assert status == 0
    assert isinstance(failure, SoftkinError)


def test_hang_ups_during_a_reload_become_one(serving, tiny, path):
    """The first reading hangs; five signals later there is one more, which finds what came meanwhile."""
    server = serving(path)
    hold(path)
    server.popen.send_signal(signal.SIGHUP)
    server.read_until("event=reloading")
    for _ in range(5):
        server.popen.send_signal(signal.SIGHUP)
    with server.client() as client:
        client.score(tiny.inliers[:1])  # by now the process has seen the signals
    fifo = path.with_name("fifo")
    path.rename(fifo)
    resealed.copy(tiny.path, path, version="2")
    let_go(fifo)

    ends = [server.read_until("event=reloaded"), server.read_until("event=reloaded")]
    last = server.hang_up()
    status = server.stop()

    assert [e.split("event=reloaded ")[1].strip() for e in ends] == [
        "loaded=0 unchanged=0 failed=1",
        "loaded=1 unchanged=0 failed=0",
    ]
    assert last == "loaded=0 unchanged=1 failed=0"
    assert status == 0


def test_labels_survive_a_reload(serving, tiny, tmp_path, path):
    """Set by the admin service; the version that takes the place of stable is stable."""
    second = resealed.copy(tiny.path, tmp_path / "second", version="2")
    server = serving(path, second, "--bundle-root", tmp_path)
    with AdminClient(f"127.0.0.1:{server.admin_port}") as admin:
        admin.set_label("tiny", "1", "stable")
        admin.set_label("tiny", "2", "canary")
        resealed.copy(tiny.path, path, version="3")
        assert server.hang_up() == "loaded=1 unchanged=1 failed=0"
        assert {d.version: d.labels for d in admin.detectors()} == {"2": ("canary",), "3": ("stable",)}
    with server.client() as client:
        assert client.score(tiny.inliers[:1]).budget.version == "3"

    assert server.stop() == 0


@pytest.fixture
def slow(tiny, path):
    """The path of a second bundle whose manifest comes only when `tell` writes it."""
    found = resealed.copy(tiny.path, path.with_name("slow"), name="slow")
    text = (found / MANIFEST).read_text()
    hold(found)

    @contextmanager
    def tell():
        with (found / MANIFEST).open("w") as pipe:  # once a reader is there
            yield
            pipe.write(text)

    return found, tell


def test_a_hang_up_while_the_server_starts_waits_for_readiness(path, slow, starting):
    """It must neither end the process, as it does without a handler, nor count as a signal to stop."""
    second, tell = slow
    server = starting(path, second)
    server.read_until("event=loaded")
    server.popen.send_signal(signal.SIGHUP)
    for read in ("event=loaded", "event=reloaded"):
        with tell():
            pass
        server.read_until(read)

    status = server.stop()

    assert server.events("loaded", "reloading", "reloaded") == ["loaded", "loaded", "reloading", "reloaded"]
    assert "unchanged=2" in "".join(server.log)
    assert status == 0


def test_sigterm_while_the_last_bundle_is_read_ends_the_start_with_it(path, slow, starting):
    """It is not broken off, as a second signal would do, but nothing is served, not even for a moment."""
    second, tell = slow
    server = starting(path, second)
    server.read_until("event=loaded")
    with tell():
        server.popen.send_signal(signal.SIGTERM)

    assert server.ended() == 0
    assert server.events("loaded", "serving", "stopped") == ["loaded", "loaded", "stopped"]


def test_a_hang_up_before_any_bundle_is_read_is_left_aside(path, tmp_path):
    """What it is about will be read anyway; it must not end the process."""
    tokens = tmp_path / "tokens"
    os.mkfifo(tokens)
    flags = ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", "--device", "cpu", "--threads", "1"]
    command = [sys.executable, "-m", "softkin.cli", "serve", str(path), "--token-file", str(tokens), *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    with tokens.open("w") as pipe:  # opens when somebody reads
        process.send_signal(signal.SIGHUP)
        pipe.write("token")
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "event=serving" in line:
            process.send_signal(signal.SIGTERM)
    status = process.wait(timeout=30)
    process.stderr.close()
    watchdog.cancel()
    watchdog.join()

    assert status == 0, lines
    assert "event=reloading" not in "".join(lines)
