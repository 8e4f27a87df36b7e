"""Small calls to a server of one process, of two, and of front-ends before one device process, on one machine.

    python benchmarks/front_ends.py [--out benchmarks/results] [--seconds 2] [--rounds 7]

Every setup gets 64 callers over two connections, from a client in a process of its own; the setups take turns within a
round, and figures are medians over the rounds. CPU time is that of all processes of a server.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

import serving_bundles
from machine import describe_machine
from report import table
from result_files import write_results
from serving import BANKS, CALLERS, HERE, Running, Served, load

SCRIPT = "front_ends_server.py"
CONNECTIONS = 2


class _Setup(NamedTuple):
    name: str
    servers: list[Served]
    others: list[Running]

    def measure(self, method: str, seconds: float, request: Path) -> dict[str, Any]:
        ports = [self.servers[i % len(self.servers)].port for i in range(CONNECTIONS)]
        return load([*self.servers, *self.others], ports, method, CALLERS, seconds, request)


def main() -> None:
    """Start the servers, run the rounds, write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    rounds: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        work = Path(folder)
        row = np.random.default_rng(1).normal(size=(1, serving_bundles.DIM)).astype("f4")
        request = serving_bundles.request(work / "row", row)
        bundles = {name: serving_bundles.vectors(work / name, rows) for name, rows in BANKS.items()}
        setups = {name: _setups(bundle, work / f"{name}.socket", stack) for name, bundle in bundles.items()}
        for i in range(options.rounds):
            for bank, found in setups.items():
                for setup in found:
                    for method in ("echo", "score") if bank == "small" else ("score",):
                        name = f"{method}, {setup.name}" + (f", {bank} bank" if method == "score" else "")
                        rounds.setdefault(name, []).append(setup.measure(method, options.seconds, request))
                        print(f"round {i + 1}: {name}: {rounds[name][-1]['rate']:.0f} per second", flush=True)
    results = {"machine": describe_machine("cpu"), "rounds": rounds}
    write_results("front_ends", results, _markdown(results), options.out)


def _setups(bundle: Path, socket: Path, stack: ExitStack) -> list[_Setup]:
    device = stack.enter_context(Running(SCRIPT, "device", str(socket), str(bundle)))

    def whole(count: int) -> list[Served]:
        return [stack.enter_context(Served(bundle, "cpu", "--workers", "1")) for _ in range(count)]

    def front_ends(count: int) -> list[Served]:
        script = (SCRIPT, "front", str(socket))
        return [stack.enter_context(Served(bundle, "cpu", "--workers", "1", script=script)) for _ in range(count)]

    return [
        _Setup("one process", whole(1), []),
        _Setup("two whole processes", whole(2), []),
        _Setup("one front-end, one device process", front_ends(1), [device]),
        _Setup("two front-ends, one device process", front_ends(2), [device]),
    ]


def _markdown(results: dict[str, Any]) -> Iterable[str]:
    m, rounds = results["machine"], results["rounds"]
    count = len(next(iter(rounds.values())))
    yield f"# Front-end processes, {m['date']}"
    yield ""
    yield f"{m['processor']}, {m['cores']} cores for servers and client together; medians of {count} rounds. Rows of"
    yield f"{serving_bundles.DIM} numbers, one a call, {CALLERS} callers over {CONNECTIONS} connections; banks of"
    yield " and ".join(f"{rows:,} rows ({name})" for name, rows in BANKS.items()) + ". The device process gets whole"
    yield "batches through a socket; front-ends do the rest."
    yield from table(
        ["", "calls per second", "CPU of all server processes per 1,000 calls, s", "median latency, ms"],
        [
            [name, *(f"{median(r[key] for r in found) * scale:{form}}" for key, scale, form in _COLUMNS)]
            for name, found in rounds.items()
        ],
    )


_COLUMNS = (("rate", 1, ".0f"), ("cpu", 1e3, ".2f"), ("p50", 1e3, ".2f"))

if __name__ == "__main__":
    main()
