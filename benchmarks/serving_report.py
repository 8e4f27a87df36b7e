"""Writes the results of `serving.py` down: JSON with every round, Markdown with medians and ratios."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from report import table
from result_files import write_results


def write_report(results: dict[str, Any], out: Path) -> None:
    """Write `serving_<machine>_<date>` .json and .md."""
    write_results("serving", results, _markdown(results), out)


def _markdown(results: dict[str, Any]) -> Iterable[str]:
    m, rounds = results["machine"], results["rounds"]
    yield f"# Serving, {m['date']}"
    yield ""
    count = len(rounds["stream, 1"])
    yield f"{m['processor']}, {m['cores']} cores for server and client together; medians of {count} rounds."
    if m["gpu"]:
        yield f"The scorers run on a GPU: {m['gpu']}."
    yield "Small and large bank: vectors of 64 numbers, 1,500 and 40,000 rows. Network: what the recipe fashion_mnist"
    yield "makes, which takes 28 x 28 images and has 20,500 rows of 3 layers. One compute thread per worker, and one"
    yield "worker where nothing else is said."
    yield from table(
        ["", "calls per second", "server CPU per 1,000 calls, s", "median latency, ms"],
        [
            [name, f"{_median(rs, 'rate'):.0f}", _shown(rs, "cpu", 1e3, ".2f"), _shown(rs, "p50", 1e3, ".2f")]
            for name, rs in rounds.items()
        ],
    )
    yield from table(["what", "is", "goal"], _ratios(rounds))
    for name, found in results["overload"].items():
        yield from _overload(name, found)


def _ratios(rounds: dict[str, Any]) -> list[list[Any]]:
    def ratio(a: str, b: str, key: str = "rate") -> str:
        return f"{median(x[key] / y[key] for x, y in zip(rounds[a], rounds[b], strict=True)):.2f}"

    echo, small, network = "echo, 64 callers", "score, 64 callers, small bank", "score, 64 callers, network"
    waiting = "echo that waits for a thread, 64 callers"
    apart = "score without merging, 64 callers, {}"
    return [
        ["single rows, 64 callers, small bank, to echo", ratio(small, echo), ">= 0.8"],
        ["to an echo that waits for a thread, as answers of merged batches do", ratio(small, waiting), ""],
        ["such an echo to echo", ratio(waiting, echo), ""],
        ["network, to echo", ratio(network, echo), ""],
        ["to a server that does not merge, small bank", ratio(small, apart.format("small bank")), ">= 2.5"],
        ["to a server that does not merge, network", ratio(network, apart.format("network")), ">= 2.5"],
        ["single rows over one stream, to 64 callers", ratio("stream, 1", small), ">= 1.5"],
        ["over four streams, to 64 callers", ratio("stream, 4", small), ""],
        *(
            [
                f"calls of 256 rows, large bank, {n} worker{'s' * (n > 1)}, to the scorer in process with {n} thread"
                f"{'s' * (n > 1)}",
                ratio(
                    f"score 256 rows, 4 callers, {n} worker{'s' * (n > 1)}",
                    f"in process, 256 rows, {n} thread{'s' * (n > 1)}",
                ),
                ">= 0.88",
            ]
            for n in (1, 2)
        ),
        *(
            [
                f"one caller alone, {what}, wait to echo, then scorer in process",
                ratio(f"score, 1 caller, {what}", f"echo, then scorer in process, {what}", "p50"),
                "<= 1.4",
            ]
            for what in ("small bank", "network")
        ),
    ]


def _overload(name: str, found: dict[str, Any]) -> Iterable[str]:
    peak, twice = median(found["peak"]), found["twice"]
    yield ""
    yield f"## Twice the load it can carry: {name}"
    yield ""
    yield f"Against the large bank, deadline 1 s. Peak: a closed loop of {found['callers']} callers. Then twice that"
    yield "rate, whatever comes back."
    codes: dict[str, int] = {}
    health: dict[str, int] = {}
    for t in twice:
        for total, part in ((codes, t["codes"]), (health, t["health"])):
            for key, n in part.items():
                total[key] = total.get(key, 0) + n
    yield from table(
        ["", ""],
        [
            ["peak, answers per second", f"{peak:.0f}"],
            ["sent per second", f"{found['rate']:.0f}"],
            ["goodput, answers per second", f"{_median(twice, 'goodput'):.0f}"],
            ["to the peak (goal: >= 0.9)", f"{_median(twice, 'goodput') / peak:.2f}"],
            [
                "cores that the server used: at the peak, at twice its rate",
                f"{median(found['cores']):.2f}, {_median(twice, 'cores'):.2f}",
            ],
            [
                "latency of accepted requests, ms: median, p99",
                f"{_shown(twice, 'p50', 1e3, '.0f')}, {_shown(twice, 'p99', 1e3, '.0f')}",
            ],
            ["statuses", ", ".join(f"{k} {n}" for k, n in sorted(codes.items()))],
            ["refusals without words or a time to wait", str(sum(t["unexplained_refusals"] for t in twice))],
            ["what the health service said", ", ".join(f"{k} {n}" for k, n in sorted(health.items()))],
        ],
    )


def _median(rounds: list[dict[str, Any]], key: str) -> float:
    return float(median(r[key] for r in rounds))


def _shown(rounds: list[dict[str, Any]], key: str, factor: float, form: str) -> str:
    values = [r[key] for r in rounds if r.get(key) is not None]
    return f"{median(values) * factor:{form}}" if values else ""
