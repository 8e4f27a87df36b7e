from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2_grpc
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

import standin_bundles
from serving import Process
from softkin.admin_client import AdminClient
from softkin.client import Client
from softkin.converters import array_to_tensor
from softkin.loading import Load
from softkin.metrics import Metrics
from softkin.registry import Registry
from softkin.scoring_detector import ScoringDetector
from softkin.server import Server
from softkin.settings import ServerSettings
from softkin.v1 import outlier_pb2 as pb
from softkin.v1 import outlier_pb2_grpc as pb_grpc
from standin import StandIn
from standin_bundles import Loading

TIMEOUT_SECONDS = 20.0
SMALL_LIMITS = {"max_rows": 8, "max_pending_rows": 64, "max_neighbors": 5, "max_message_bytes": 4096}


@dataclass
class Running:
    """A server in this process, and a channel to it."""

    server: Server
    metrics: Metrics
    channel: grpc.Channel
    target: str

    def __post_init__(self) -> None:
        self.stub: Any = pb_grpc.OutlierServiceStub(self.channel)
        self.health: Any = health_pb2_grpc.HealthStub(self.channel)

    def score(self, rows: NDArray[np.generic], **fields: Any) -> pb.ScoreResponse:
        """Score through the raw stub, so that statuses are seen as they travel."""
        request = pb.ScoreRequest(inputs=array_to_tensor(rows), **fields)
        return self.stub.Score(request, timeout=TIMEOUT_SECONDS)

    def client(self, **options: Any) -> Client:
        """A client of softkin's own."""
        return Client(self.target, **options)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what the server does behind the caller's back and no event announces."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.002)

    def admin(self, **options: Any) -> AdminClient:
        """A client of the admin port."""
        return AdminClient(f"127.0.0.1:{self.server.admin_port}", timeout_seconds=TIMEOUT_SECONDS, **options)

    def series(self, *names: str) -> dict[str, float]:
        """All series of the service's own metrics whose names begin so, as text, with their values."""
        return {
            f"{s.name}{dict(sorted(s.labels.items()))}": s.value
            for family in self.metrics.registry.collect()
            for s in family.samples
            if s.name.startswith(names)
        }

    def sample(self, name: str, **labels: str) -> float | None:
        """The value of one metric, None when it does not exist."""
        return self.metrics.registry.get_sample_value(name, labels)


Start = Callable[..., Running]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts real servers on free ports; keyword arguments are settings. `ready=False` leaves a server at `listen`.

    `load` makes detectors of the setting `bundles`, and of what the admin service loads.
    """
    with _servers() as run:
        yield run


@contextmanager
def _servers() -> Iterator[Start]:
    running: list[Running] = []

    def run(*detectors: ScoringDetector, ready: bool = True, load: Load | None = None, **options: Any) -> Running:
        settings = ServerSettings(**{"host": "127.0.0.1", "port": 0, "metrics_port": 0, **options})
        registry, metrics = Registry(), Metrics(CollectorRegistry(), version="0")
        for detector in detectors:
            registry.add(detector)
        server = Server(settings, registry, metrics, load)
        server.listen()
        if ready:
            server.make_ready()
        target = f"127.0.0.1:{server.port}"
        running.append(Running(server, metrics, grpc.insecure_channel(target), target))
        return running[-1]

    yield run
    for r in running:
        r.channel.close()
        r.server.stop_now()


@pytest.fixture
def serve() -> Iterator[Callable[..., Process]]:
    """Starts serving processes; see `Process`."""
    started: list[Process] = []

    def run(*arguments: str) -> Process:
        started.append(Process(*arguments))
        return started[-1]

    yield run
    for process in started:
        process.close()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Holds a stand-in's requests until it is set."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def loading() -> Iterator[Loading]:
    """Loads stand-in bundles; no load outlives the test."""
    loading = Loading()
    yield loading
    for gate in (loading.gate, loading.detector_gate):
        if gate is not None:
            gate.set()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A bundle root with two versions, and what lies outside."""
    root = tmp_path / "root"
    root.mkdir()
    standin_bundles.write(root / "v2", "2", shift=2000)
    standin_bundles.write(root / "v3", "3", shift=3000)
    standin_bundles.write(tmp_path / "outside", "9")
    return root


@pytest.fixture
def operated(start: Start, loading: Loading, root: Path) -> Running:
    """A server of version 1, with an admin port."""
    return start(StandIn(), load=loading, admin_port=0, bundle_root=root, shadow_min_rows=10)


@pytest.fixture
def admin(operated: Running) -> Iterator[AdminClient]:
    """A client of its admin port."""
    with operated.admin() as client:
        yield client


@pytest.fixture
def server(start: Start) -> Running:
    """A server with one stand-in detector and small limits."""
    return start(StandIn(), **SMALL_LIMITS)


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Running]:
    """The same for tests that only read: closing a metrics port takes half a second."""
    with _servers() as run:
        yield run(StandIn(), **SMALL_LIMITS)


@pytest.fixture
def rows() -> Callable[..., NDArray[np.float32]]:
    """Rows whose values are 0, 1, 2, ... so that every row's sum differs."""

    def make(n: int, offset: int = 0) -> NDArray[np.float32]:
        return (np.arange(n * 6, dtype=np.float32) + offset).reshape(n, 2, 3)

    return make
