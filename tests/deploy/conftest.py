from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from authority import Authority
from softkin.admin_client import AdminClient
from softkin.client import Client
from softkin.detector import Detector
from softkin.metrics import Metrics
from softkin.registry import Registry
from softkin.server import Server
from softkin.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 30


@dataclass
class Served:
    """A server in this process that serves the tiny bundle."""

    server: Server
    registry: CollectorRegistry
    client: Client
    admin: AdminClient
    ca: Path


@pytest.fixture
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture
def served(tiny: Any, tmp_path: Path) -> Iterator[Served]:
    """A real server with a real detector and TLS on free ports, and every collector that `softkin serve` registers."""
    ca = Authority(tmp_path)
    collectors = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=collectors)
    detectors = Registry()
    detectors.add(Detector.load(tiny.path, device="cpu", threads=1))
    ports = {"host": "127.0.0.1", "port": 0, "metrics_port": 0, "admin_port": 0}
    options = {"device": "cpu", "threads": 1, "bundle_root": tmp_path, "shadow_share": 1}
    settings = ServerSettings(**ports, **options, **ca.issue("server"), drift_state=tmp_path / "drift")
    server = Server(settings, detectors, Metrics(collectors, version="0"))
    server.start()
    admin = AdminClient(f"127.0.0.1:{server.admin_port}", tls_ca=ca.file)
    with Client(f"127.0.0.1:{server.port}", tls_ca=ca.file) as client, admin:
        yield Served(server, collectors, client, admin, ca.file)
    server.stop_now()


@pytest.fixture
def program() -> Callable[[str], str]:
    """Finds `prometheus` or `promtool`; without them nothing here is checked, so their absence is a failure."""

    def find(name: str) -> str:
        path = shutil.which(name)
        assert path, f"{name} is not on PATH: install Debian's package prometheus, which has prometheus and promtool"
        return path

    return find


class Prometheus:
    """A running Prometheus and its HTTP API."""

    def __init__(self, url: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.url, self.process, self.log = url, process, log

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an API answer."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}{path}?{query}", timeout=5) as answer:
            return json.load(answer)["data"]

    def values(self, expr: str) -> list[float]:
        """The samples of an instant query."""
        return [float(r["value"][1]) for r in self.get("/api/v1/query", query=expr)["result"]]

    def until(self, expr: str, expected: float) -> None:
        """Wait until an instant query gives one sample of that value."""
        values: object = "no answer"
        give_up = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < give_up and self.process.poll() is None:
            try:
                values = self.values(expr)
            except urllib.error.URLError as e:  # it is still starting
                values = e
            if values == [expected]:
                return
            time.sleep(0.2)
        end = f"exit status {self.process.poll()}\n{self.log.read_text()}"
        pytest.fail(f"{expr} gave {values}, expected {expected}; {end}")


@pytest.fixture
def prometheus(served: Served, program: Callable[[str], str], root: Path, tmp_path: Path) -> Iterator[Prometheus]:
    """Base URL of a Prometheus with the shipped configuration, pointed at the server and made to hurry."""
    config = yaml.safe_load((root / "deploy/prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(root / "deploy/prometheus/rules.yml")]
    # What the PodMonitor of deploy/kubernetes adds to every series.
    pod = {"namespace": "here", "pod": "softkin-0"}
    config["scrape_configs"][0]["static_configs"] = [
        {"targets": [f"127.0.0.1:{served.server.metrics_port}"], "labels": pod}
    ]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        program("prometheus"),
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        yield Prometheus(f"http://{address}", process, tmp_path / "log")
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
