"""What commands print about detectors: status, drift, a bundle's manifest. Of scores, see `score_display`."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import markup
from rich.console import Console
from rich.table import Column, Table

from softkin.descriptions import DetectorInfo, DriftInfo
from softkin.manifest import CLASS_P_VALUES, INPUT_COLUMNS, NAMED_ROWS, Manifest

COLUMNS_SHOWN = 20
"""Columns of a table that a line of `inspect` names."""
CLASSES_SHOWN = 100
"""Classes of a bundle that are named; of more, their names would push all other facts out of sight."""
DRIFTED = (
    "rule out repeats (retries, frames of a video), which look like drift; see in what rows are strange (softkin score "
    "--neighbors 5); if they are fit for the model, recalibrate on unselected ones (softkin-train recalibrate)"
)
"""What an alarm asks for; docs/operations.md has more."""


def spelled(text: str) -> str:
    """Text on one line that neither moves a cursor nor colours a terminal: names come from other people's files."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def escape(text: str) -> str:
    """`spelled` for rich, which takes brackets for markup."""
    return markup.escape(spelled(text))


def table(*headers: str) -> Table:
    """An empty table, in which a narrow terminal folds names and numbers instead of cutting them short."""
    return Table(*(Column(header, overflow="fold") for header in headers))


def print_columns(headers: Sequence[str], rows: Iterable[Sequence[str]], widths: Sequence[int]) -> None:
    """Print a table without lines, row by row; columns for which no width is given come last and are not padded."""
    padded = [max(len(h), w) for h, w in zip(headers, widths, strict=False)]
    for row in itertools.chain([headers], rows):
        print("  ".join([*map(str.ljust, row, padded), *row[len(padded) :]]).rstrip())


def print_detectors(more: Sequence[str], detectors: Iterable[tuple[DetectorInfo, Sequence[str]]]) -> None:
    """Print versions in a line each, as wide as they are: a name that is typed after must be whole.

    Args:
        more: headers of further columns.
        detectors: each with its cells there.
    """
    rows = [(d.name, d.version, ",".join(d.labels) or "-", d.digest[:12], d.device, *own) for d, own in detectors]
    cells = [[*map(spelled, row)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print_columns(("detector", "version", "labels", "digest", "device", *more), cells, widths)


def print_drift(drift: DriftInfo, *, as_json: bool) -> None:
    """Print what a drift watch has seen."""
    r = drift.report
    if as_json:
        print(json.dumps(_drift_dict(drift), allow_nan=False))
        return
    facts, console = Table(show_header=False), Console(soft_wrap=True, emoji=False)
    bars = _bars(r.histogram, ascii_only=console.options.ascii_only)
    since = f"yes, at row {r.alarm_row}" if r.alarm else "no"
    for key, value in {
        "detector": f"{drift.detector} {drift.version}",
        "rows watched": str(r.rows),
        "drift alarm": f"{since} (chance of one, ever, while nothing drifts: at most {r.level:g})",
        "evidence": f"10^{r.log10_martingale:.2f}, highest 10^{r.max_log10_martingale:.2f}; alarm at {1 / r.level:g}",
        "recent evidence": f"{r.cusum:.1f} nats (CUSUM, no guarantee on false alarms)",
        "recent flag rate": f"{r.flag_rate:.2%} of {r.window_rows} rows, alpha is {r.alpha:g}",
        "recent p-values": f"{bars}  0 to 1, level without drift",
    }.items():
        facts.add_row(key, escape(value))
    console.print(facts, highlight=False)
    if r.alarm:
        console.print(f"what to do: {DRIFTED}", highlight=False)


def print_status(detectors: Sequence[tuple[DetectorInfo, DriftInfo]], *, as_json: bool) -> None:
    """Print what a server serves: every version, where it runs, and what its drift watch says, in a line each."""
    rows = []
    for d, drift in detectors:
        r = drift.report
        if as_json:
            print(json.dumps({**dataclasses.asdict(d), "drift": _drift_dict(drift)}, allow_nan=False))
        flagged = f"{r.flag_rate:.2%}" if r.window_rows else "-"
        rows.append((d, (str(r.rows), flagged, f"{r.alpha:g}", f"row {r.alarm_row}" if r.alarm else "no")))
    if not as_json:
        print_detectors(("rows", "flagged", "alpha", "drift"), rows)


def _drift_dict(drift: DriftInfo) -> dict[str, Any]:
    found = dataclasses.asdict(drift) | {"alarm": drift.report.alarm}
    found["report"]["histogram"] = drift.report.histogram.tolist()
    return found


def _bars(counts: NDArray[np.int64], *, ascii_only: bool) -> str:
    top = max(int(counts.max()), 1)
    heights = " 12345678" if ascii_only else " ▁▂▃▄▅▆▇█"
    return "".join(heights[round(8 * int(n) / top)] for n in counts)


def describe_bank(m: Manifest) -> str:
    """How many rows in which precision, and what that changed against all rows in float32."""
    stored = f"{m.bank_size} rows in {m.bank_precision}"
    if m.condensed_from:
        stored = f"{m.bank_size} prototypes of {m.condensed_from} rows in {m.bank_precision}"
    if isinstance(named := m.provenance.get(NAMED_ROWS), int):
        stored += f", {named} of them with a name"
    if m.approximation is None:
        return stored
    a = m.approximation
    aurocs = "".join(f", AUROC of {name} by {change:+.4f}" for name, change in a.auroc_changes.items())
    return (
        f"{stored}; against all rows in float32, p-values change by {a.max_p_value_change:.2g} at most and "
        f"{a.mean_p_value_change:.2g} in the mean, verdicts on {a.verdict_changes:.2%} of the calibration rows{aurocs}"
    )


def describe_class_p_values(m: Manifest) -> list[str]:
    """Lines that say which labelled rows class p-values rest on; none where they are the rows of p-values too."""
    said = m.provenance.get(CLASS_P_VALUES)
    if not isinstance(said, dict):
        return []
    number = said.get("labelled_rows")
    what = "class p-values, credibility and confidence"
    if kept := said.get("kept_from_version"):
        return [
            f"no labels: p-values, verdicts and every guarantee are those of the new rows; {what} are not:",
            f"they rest on {number} labelled rows of version {spelled(str(kept))}, and promise nothing of inliers now",
        ]
    return [f"{what} rest on the {number} labelled calibration rows; p-values and verdicts ask for no label"]


def _describe_columns(m: Manifest) -> str:
    """Which columns of a table a row is made of, in their order; empty where rows came from no table."""
    names = m.provenance.get(INPUT_COLUMNS)
    if not isinstance(names, list):
        return ""
    return f": {_first([spelled(str(name)) for name in names], COLUMNS_SHOWN)}"


def _first(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + ("" if len(names) <= most else ", ... (all: --json)")


def print_manifest(manifest: Manifest, digest: str, *, as_json: bool, verified: bool = False) -> None:
    """Print what a bundle is, and whether its files have been read and found to be the manifest's."""
    if as_json:
        print(json.dumps({"digest": digest, **dataclasses.asdict(manifest)}, indent=1, sort_keys=True))
        return
    m, resting = manifest, describe_class_p_values(manifest)
    smallest, c = 1 / (m.calibration_size + 1), m.certificate
    facts = Table(Column(), Column(overflow="fold"), show_header=False)  # a digest cut short is of no use
    said = {
        "detector": f"{m.name} {m.version}",
        "digest": digest,
        "created": m.created,
        "input": f"{m.input_dtype} [rows, {', '.join(map(str, m.input_shape))}]{_describe_columns(m)}",
        "classes": f"{len(m.classes)}: {_first(m.classes, CLASSES_SHOWN)}",
        "nonconformity": f"joint of {', '.join(m.parts)}" if m.parts else m.nonconformity,
        "default alpha": f"{m.default_alpha:g}",
        "calibration": f"{m.calibration_size} rows, smallest p-value {smallest:.4g}; by predicted class "
        f"{min(m.predicted_class_rows)} to {max(m.predicted_class_rows)}",
        "class p-values": " ".join(resting),
        "certificate": f"at alpha {c.alpha:g} the false-alarm rate is at most {c.false_alarm_bound:.4g}, at confidence "
        f"{c.confidence:g}; the smallest rate that can be certified is {c.smallest_certified:.4g}",
        "bank": describe_bank(m),
        "size": f"{sum(f.size for f in m.files.values()) / 1e6:.1f} MB in {len(m.files)} files"
        + (", every one whole" if verified else ""),
    }
    if not resting:
        del said["class p-values"]
    for key, value in said.items():
        facts.add_row(key, escape(value))
    layers = table("layer", "dim", "metric", "temperature", "weight", "reducer")
    for x in m.layers:
        layers.add_row(escape(x.name), str(x.dim), x.metric, f"{x.temperature:g}", f"{x.weight:g}", escape(x.reducer))
    console = Console(soft_wrap=True, emoji=False)
    console.print(facts, layers, highlight=False)
