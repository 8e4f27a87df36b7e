from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
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


@dataclass
class Served:
    """A server in this process that serves the tiny bundle."""

    server: Server
    registry: CollectorRegistry
    client: Client
    admin: AdminClient


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
    settings = ServerSettings(**ports, **options, **ca.issue("server"))
    server = Server(settings, detectors, Metrics(collectors, version="0"))
    server.start()
    admin = AdminClient(f"127.0.0.1:{server.admin_port}", tls_ca=ca.file)
    with Client(f"127.0.0.1:{server.port}", tls_ca=ca.file) as client, admin:
        yield Served(server, collectors, client, admin)
    server.stop_now()


@pytest.fixture
def program() -> Callable[[str], str]:
    """Finds `prometheus` or `promtool`; without them nothing here is checked, so their absence is a failure."""

    def find(name: str) -> str:
        path = shutil.which(name)
        assert path, f"{name} is not on PATH: install Debian's package prometheus, which has prometheus and promtool"
        return path

    return find
