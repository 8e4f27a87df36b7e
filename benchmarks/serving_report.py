"""Writes the results of `serving.py` down: JSON with every round, Markdown with medians and ratios."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from report import table


def write_report(results: dict[str, Any], out: Path) -> None:
    """Write `serving_<cores>vcpu_<date>` .json and .md."""
    out.mkdir(parents=True, exist_ok=True)
    m = results["machine"]
    stem = f"serving_{m['cores']}vcpu_{m['date']}"
    (out / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / f"{stem}.md").write_text("\n".join(_markdown(results)) + "\n", encoding="utf-8")
    print(out / f"{stem}.md")


def _markdown(results: dict[str, Any]) -> Iterable[str]:
    m, rounds = results["machine"], results["rounds"]
    yield f"# Serving, {m['date']}"
    yield ""
    count = len(rounds["stream, 1"])
    yield f"{m['processor']}, {m['cores']} cores for server and client together; medians of {count} rounds."
    yield "Vectors of 64 numbers; the small bank has 1,500 rows, the large one 40,000. One compute thread, one worker."
    yield from table(
        ["", "calls per second", "server CPU per 1,000 calls, s", "median latency, ms"],
        [
            [name, f"{_median(rs, 'rate'):.0f}", _shown(rs, "cpu", 1e3, ".2f"), _shown(rs, "p50", 1e3, ".2f")]
            for name, rs in rounds.items()
        ],
    )
    yield from table(["what", "is", "goal"], _ratios(rounds))
    yield from _overload(results)


def _ratios(rounds: dict[str, Any]) -> list[list[Any]]:
    def ratio(a: str, b: str) -> float:
        return median(x["rate"] / y["rate"] for x, y in zip(rounds[a], rounds[b], strict=True))

    waits = median(
        s["p50"] / (e["p50"] + p["p50"])
        for s, e, p in zip(
            rounds["score, 1 caller"], rounds["echo, 1 caller"], rounds["in process, 1 row"], strict=True
        )
    )
    score = "score, 64 callers"
    return [
        ["single rows, 64 callers, to echo", f"{ratio(score, 'echo, 64 callers'):.2f}", ">= 0.8"],
        ["to a server that does not merge", f"{ratio(score, 'score without merging, 64 callers'):.2f}", ">= 2.5"],
        ["single rows over one stream, to 64 callers", f"{ratio('stream, 1', score):.2f}", ">= 1.5"],
        ["over four streams, to 64 callers", f"{ratio('stream, 4', score):.2f}", ""],
        [
            "calls of 256 rows, large bank, to the scorer in process",
            f"{ratio('score 256 rows, 4 callers', 'in process, 256 rows'):.2f}",
            ">= 0.88",
        ],
        ["one caller alone, wait to echo + scorer", f"{waits:.2f}", "<= 1.4"],
    ]


def _overload(results: dict[str, Any]) -> Iterable[str]:
    peak, twice = results["peak"], results["overload"]
    yield ""
    yield "## Twice the load it can carry"
    yield ""
    yield "Requests of 16 rows against the large bank, deadline 1 s. Peak: a closed loop of 64 callers. Then twice that"
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
            ["peak, answers per second", f"{_median(peak, 'goodput'):.0f}"],
            ["sent per second", f"{_median(twice, 'rate'):.0f}"],
            ["goodput, answers per second", f"{_median(twice, 'goodput'):.0f}"],
            ["to the peak (goal: >= 0.9)", f"{_median(twice, 'goodput') / _median(peak, 'goodput'):.2f}"],
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
