"""The whole product on data that come with scikit-learn: train, export, build, serve, score over gRPC, scrape, stop.

python -m softkin_training.demo --out runs/demo
"""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from softkin import Client, Scores, SoftkinError, UnavailableError
from softkin_training.arguments import folder
from softkin_training.config import load_recipe
from softkin_training.data import Dataset, load_dataset
from softkin_training.evaluate import Report
from softkin_training.interruption import INTERRUPTED, terminable
from softkin_training.run import run

ROWS_SHOWN = 3
WIDTH = 110
"""Columns of output that goes to a file or a pipe."""
NEIGHBORS = 5
START_SECONDS = 60
METRICS_SHOWN = ("softkin_rows_total", "softkin_detector_info", "softkin_alpha", "softkin_drift_alarm{")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; 0 when every step worked, 1 when one failed, 130 when it was interrupted."""
    parser = argparse.ArgumentParser(prog="python -m softkin_training.demo", description=__doc__)
    parser.add_argument("--out", type=folder, default=Path("runs/demo"), metavar="DIR", help="for all results")
    arguments = parser.parse_args(argv)
    try:
        terminal = Console()
        with terminable():  # its server must not outlive it
            demo(arguments.out, terminal if terminal.is_terminal else Console(width=WIDTH))
    except SoftkinError as e:
        print(f"demo: error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def demo(out: Path, console: Console) -> None:
    """Everything, narrated on `console`."""
    recipe = load_recipe("digits")
    dataset = load_dataset(recipe)
    unknown = [str(c) for c in range(10) if str(c) not in dataset.class_names]
    console.rule("1  Train, export, build")
    console.print(
        f"A classifier for the handwritten digits {', '.join(dataset.class_names)}; it never sees "
        f"{' or '.join(unknown)}. {len(dataset.train)} images train it, {len(dataset.calibration)} others calibrate, "
        f"{len(dataset.test)} test.\n"
    )
    report = run(recipe, dataset, out, progress=console.is_terminal)
    console.print(f"Test accuracy {report.accuracy:.3f}. The detector is the directory [bold]{out / 'bundle'}[/].\n")

    console.rule("2  Serve")
    port, metrics_port = _free_port(), _free_port()
    with _served(out / "bundle", port, metrics_port) as server, Client(f"127.0.0.1:{port}") as client:
        _wait_until_healthy(client, server)
        console.print(f"softkin serve {out / 'bundle'} --port {port} --metrics-port {metrics_port}   (healthy)\n")

        console.rule("3  Score over gRPC")
        _show_rows(client, dataset, console)
        _show_rates(client, dataset, console)

        console.rule("4  Scrape")
        _show_metrics(metrics_port, console)

        console.rule("5  Stop")
        server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=30)
        console.print(f"SIGTERM: the server finished its work and exited with code {code}.\n")
        if code != 0:
            raise SoftkinError(f"the server exited with code {code} instead of 0")
    _show_report(report, console)
    console.print(f"In full: {out / 'report'}/report.html")


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def _served(bundle: Path, port: int, metrics_port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "softkin.cli", "serve", str(bundle), "--host", "127.0.0.1"]
    flags = ["--port", str(port), "--metrics-port", str(metrics_port), "--log-level", "warning"]
    server = subprocess.Popen([*command, *flags])
    try:
        yield server
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


def _wait_until_healthy(client: Client, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not client.healthy():
        if server.poll() is not None:
            raise SoftkinError(f"the server exited with code {server.returncode} before it was ready")
        if time.monotonic() > deadline:
            raise UnavailableError(f"the server was not ready within {START_SECONDS} s")
        time.sleep(0.1)


def _show_rows(client: Client, dataset: Dataset, console: Console) -> None:
    console.print(
        "p-value: how often a genuine known digit looks at least as strange; at most alpha means OUTLIER.\n"
        "Credibility: the p-value of the class that fits best. Last column: the evidence, what it was compared with.\n"
    )
    table = Table(title=f"A few rows of each kind, with the labels of their {NEIGHBORS} nearest training images")
    for column in ("what it really is", "verdict", "p-value", "credibility", "taken for a", "nearest training labels"):
        table.add_column(column, justify="right" if column in ("p-value", "credibility") else "left")
    known = "known digit"
    for kind, x in {known: dataset.test.x, **dataset.outliers}.items():
        scores = client.score(x[:ROWS_SHOWN], num_neighbors=NEIGHBORS)
        for i in range(len(scores)):
            title = f"{kind}: {dataset.class_names[dataset.test.y[i]]}" if kind == known else kind
            table.add_row(title, *_cells(scores, i, dataset.class_names), end_section=i == len(scores) - 1)
    console.print(table)
    console.print()


def _cells(scores: Scores, i: int, names: tuple[str, ...]) -> list[str]:
    assert scores.neighbors is not None
    verdict = "[bold red]OUTLIER[/]" if scores.is_outlier[i] else "[green]inlier[/]"
    nearest = " ".join(names[j] for j in scores.neighbors.labels[i, -1])
    return [
        verdict,
        f"{scores.p_value[i]:.4f}",
        f"{scores.credibility[i]:.4f}",
        names[scores.predicted_class[i]],
        nearest,
    ]


def _show_rates(client: Client, dataset: Dataset, console: Console) -> None:
    scores = client.score(dataset.test.x)
    budget = scores.budget
    table = Table(title=f"Flagged at alpha = {budget.alpha:g} ({budget.calibration_size} calibration rows)")
    for column in ("rows", "number", "flagged", "meaning"):
        table.add_column(column, justify="right" if column in ("number", "flagged") else "left")
    share = float(scores.is_outlier.mean())
    table.add_row(
        "digits of known classes", str(len(scores)), f"{share:.1%}", f"false alarms; {budget.alpha:.0%} are accepted"
    )
    for name, x in dataset.outliers.items():
        table.add_row(name, str(len(x)), f"{_flagged(client, x):.1%}", "outliers caught")
    console.print(table)
    console.print()


def _flagged(client: Client, x: NDArray[np.generic]) -> float:
    return float(client.score(x).is_outlier.mean())


def _show_metrics(port: int, console: Console) -> None:
    console.print(f"curl http://127.0.0.1:{port}/metrics   (excerpt)")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    for line in lines:
        if line.startswith(METRICS_SHOWN) and "_created" not in line:
            console.print("  " + line, markup=False, highlight=False, soft_wrap=True)
    console.print()


def _show_report(report: Report, console: Console) -> None:
    table = Table(title="What other scores give on the same network, bank and rows (means over the outlier sets)")
    for column in ("score", "AUROC", f"caught at {report.alpha:g}", "false alarms"):
        table.add_column(column, justify="left" if column == "score" else "right")
    for r in report.scores.values():
        assert r.mean_caught is not None
        assert r.false_alarms is not None
        table.add_row(r.title, f"{r.mean_auroc:.4f}", f"{r.mean_caught:.1%}", f"{r.false_alarms.value:.1%}")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
