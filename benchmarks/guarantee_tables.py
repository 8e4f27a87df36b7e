"""The tables of results/guarantees.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from report import table


def markdown(found: dict[str, Any], run_length: int) -> Iterator[str]:
    """Everything that was found, as Markdown; `run_length`: rows that the CUSUM was run over."""
    m = found["machine"]
    yield f"# Guarantees in figures, {m['date']}"
    yield ""
    yield f"Real scores of a Fashion-MNIST bundle; {m['processor']}, {m['cores']} cores, Python {m['python']}. See"
    yield "[docs/guarantees.md](../../docs/guarantees.md); `make guarantees` makes this page and its pictures."
    f = found["false_alarms"]
    yield from ("", "## False alarms", "", f"{f['splits']:,} splits, n = {f['n']}.")
    for kind, rates in f["rates"].items():
        yield from table([kind, *map(str, f["alphas"])], [[k, *[f"{r:.4f}" for r in v]] for k, v in rates.items()])
    c = found["certificates"]
    yield from ("", "## Certificates", "")
    yield (
        f"{c['draws']} draws of n = {c['n']} at alpha = {c['alpha']}: the rate of the single set lies above alpha in "
        f"{c['marginal_above_alpha']:.1%}, above its bound {c['bound']:.4f} in {c['marginal_above_bound']:.1%}; "
        f"certified, above alpha in {c['certified_above_alpha']:.1%} (stated: {1 - c['confidence']:.0%})."
    )
    yield from table(
        ["n", "bound at .05", "bound at .01", "rank certified at .01", "smallest certified"],
        [[f"{v:.4f}" if isinstance(v, float) else v for v in row.values()] for row in c["by_size"]],
    )
    k = found["classes"]
    yield from ("", "## By predicted class", "", f"Share of false alarms at alpha = {k['alpha']}, n = {k['n']}.")
    yield from table(
        ["class", *map(str, range(10))],
        [[name, *[f"{r:.3f}" for r in k[name]]] for name in ("marginal", "class_conditional")],
    )
    b = found["batches"]
    yield from ("", "## Over a batch", "")
    yield f"{b['batches']} batches of {b['rows']} rows, n = {b['n']}, rate {b['rate']}."
    yield from table(
        ["share of outliers", *map(str, b["shares"])],
        [
            [f"{name}: {what.replace('_', ' ')}", *[f"{v:.3f}" for v in values[what]]]
            for name, values in b["sets"].items()
            for what in ("false_discovery_rate", "found")
        ],
    )
    yield from _drift_tables(found, run_length)
    x = found["limits"]
    yield from ("", "## Not promised", "", f"Share of outliers caught, n = {x['n']}.")
    yield from table(["alpha", *map(str, x["alphas"])], [[n, *[f"{v:.3f}" for v in r]] for n, r in x["caught"].items()])
    yield from (
        "",
        f"Null streams of 5,000 rows, each row sent several times over, that alarm at level .05 ({x['streams']}).",
    )
    yield from table(["times", *map(str, x["repeats"])], [["alarmed", *[f"{v:.3f}" for v in x["alarmed"]]]])


def _drift_tables(found: dict[str, Any], run_length: int) -> Iterator[str]:
    a = found["drift_alarms"]
    yield from ("", "## Over time", "")
    yield f"Share of {a['streams']} null streams of {a['steps']:,} rows that ever alarm at level {a['level']}."
    yield from table(
        ["calibration rows", "drift watch", "same bets, fixed calibration set"],
        [[n, *[f"{np.mean(np.array(v[k]) > 0):.3f}" for k in ("watch", "fixed")]] for n, v in a["n"].items()],
    )
    d = found["drift_delays"]
    yield from (
        "",
        f"Rows from the first notMNIST image to the alarm at level {d['level']}, n = {d['n']}: median (10 % to 90 %).",
    )
    yield from table(
        ["clean rows before", *[f"{s:.0%}" for s in d["shares"]]],
        [[clean, *[_delay(r) for r in rows]] for clean, rows in d["delays"].items()],
    )
    c = found["cusum"]
    yield from (
        "",
        f"CUSUM, n = {c['n']}: rows between false alarms (median calibration set), and delay at 5 % notMNIST.",
    )
    yield from table(
        ["threshold in nats", *[f"{h:g}" for h in c["thresholds"]]],
        [
            ["rows between false alarms", *[_run_length(v, run_length) for v in c["rows_between_false_alarms"]]],
            ["median delay", *[f"{v:g}" for v in c["median_delay"]]],
        ],
    )


def _delay(quantiles: list[int | None]) -> str:
    low, middle, high = ("never" if q is None else str(q) for q in quantiles)
    return f"{middle} ({low} to {high})"


def _run_length(rows: float, most: int) -> str:
    return f"over {most:,}" if rows >= most else f"{rows:,.0f}"
