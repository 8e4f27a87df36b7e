"""What an ablation found: means and deviations over seeds, and differences paired by seed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import ttest_rel

from softkin.errors import InvalidInputError
from softkin_training.ablation_plan import FAR, Cell
from softkin_training.data import HELD_OUT_SETS
from softkin_training.interruption import AGAIN
from softkin_training.report_files import write_texts
from softkin_training.report_markdown import plain
from softkin_training.report_tables import number

OWN = "softkin"
"""Name of a bundle's own score in its report; every other score there is the same for all detect variants."""
MEASURES = ("far_auroc", "far_caught", "near_auroc", "near_caught", "false_alarms")


def write_table(cells: Sequence[Cell], out: Path) -> str:
    """Write ablation.json and ablation.md into `out`, both or neither; return the latter's text.

    Raises:
        InvalidInputError: they cannot be written.
    """
    table = summarise(cells)
    text = markdown(table)
    try:
        write_texts(out, {"ablation.json": json.dumps(table, indent=1) + "\n", "ablation.md": text})
    except OSError as e:
        raise InvalidInputError("out", f"cannot write to {out} ({e.strerror}); make room, then {AGAIN}") from None
    return text


def summarise(cells: Sequence[Cell]) -> dict[str, Any]:
    """The table as JSON-able values.

    Far: mean over the outlier sets of the family that knows all classes. Near: mean over the families that hold classes
    out, on those classes. `paired` compares with the first train variant, score by score, over the same seeds: mean
    difference and two-sided p-value of a paired t-test (None for fewer than 3 seeds, or where differences do not vary).
    """
    variants = list(dict.fromkeys(c.train for c in cells))
    values = values_by_seed(cells)
    rows = []
    for score in dict.fromkeys(score for _, score in values):
        base = values.get((variants[0], score))
        for variant in variants:
            found = values.get((variant, score))
            if found is None:
                continue
            row: dict[str, Any] = {"train": variant, "score": score}
            for measure, by_seed in found.items():
                numbers = list(by_seed.values())
                row[measure] = {"mean": float(np.mean(numbers)), "sd": _deviation(numbers), "seeds": len(numbers)}
            if base is not None and variant != variants[0]:
                row["paired"] = {m: _paired(found[m], base[m]) for m in found.keys() & base.keys()}
            rows.append(row)
    return {"baseline": variants[0], "accuracy": _accuracy(cells, variants), "rows": rows}


def markdown(table: dict[str, Any]) -> str:
    """The table in Markdown: mean +- deviation over seeds, the best of each column in bold."""
    lines = ["# Ablation", "", "| network | accuracy | paired difference |", "|---|---|---|"]
    for variant, a in table["accuracy"].items():
        lines.append(f"| {plain(variant)} | {_cell(a)} | {_difference(a['paired']) if 'paired' in a else ''} |")
    measures, best = measures_of(table)
    lines += ["", "| score | network | " + " | ".join(m.replace("_", " ") for m in measures) + " |"]
    lines.append("|---" * (2 + len(measures)) + "|")
    for row in table["rows"]:
        cells = []
        for m in measures:
            text = _cell(row[m]) if m in row else ""
            cells.append(f"**{text}**" if m in row and number(row[m]["mean"]) == best.get(m) else text)
        lines.append(f"| {plain(row['score'])} | {plain(row['train'])} | " + " | ".join(cells) + " |")
    lines += ["", f"Paired differences to {plain(table['baseline'])} are in ablation.json.", ""]
    return "\n".join(lines)


def measures_of(table: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """The measures that a table has, and the best mean of each as it is shown, for digits that are not decide nothing.

    False alarms have none: neither end is best.
    """
    measures = [m for m in MEASURES if any(m in row for row in table["rows"])]
    judged = [m for m in measures if m != "false_alarms"]
    return measures, {m: number(max(r[m]["mean"] for r in table["rows"] if m in r)) for m in judged}


def values_by_seed(cells: Sequence[Cell]) -> dict[tuple[str, str], dict[str, dict[int, float]]]:
    """(train variant, score) -> measure -> seed -> value, near ones averaged over families."""
    collected: dict[tuple[str, str], dict[str, dict[int, list[float]]]] = {}
    detects = list(dict.fromkeys(c.detect for c in cells))
    for cell in cells:
        near = cell.family != FAR
        for name, score in cell.report["scores"].items():
            if name != OWN and cell.detect != detects[0]:
                continue
            label = f"softkin: {cell.detect}" if name == OWN else score["title"]
            at = collected.setdefault((cell.train, label), defaultdict(lambda: defaultdict(list)))
            sets = [s for n, s in score["outliers"].items() if not near or n in HELD_OUT_SETS]
            if not sets:  # no test row is of a class held out
                continue
            prefix = "near" if near else "far"
            at[f"{prefix}_auroc"][cell.seed].append(float(np.mean([s["auroc"] for s in sets])))
            if all(s["caught"] for s in sets):
                at[f"{prefix}_caught"][cell.seed].append(float(np.mean([s["caught"]["value"] for s in sets])))
            if score["false_alarms"] and not near:
                at["false_alarms"][cell.seed].append(score["false_alarms"]["value"])
    return {
        key: {m: {seed: float(np.mean(v)) for seed, v in by_seed.items()} for m, by_seed in measures.items()}
        for key, measures in collected.items()
    }


def _accuracy(cells: Sequence[Cell], variants: Sequence[str]) -> dict[str, Any]:
    found: dict[str, dict[int, float]] = {v: {} for v in variants}
    for cell in cells:
        if cell.family == FAR:
            found[cell.train][cell.seed] = cell.report["accuracy"]
    table: dict[str, Any] = {}
    for variant, by_seed in found.items():
        numbers = list(by_seed.values())
        table[variant] = {"mean": float(np.mean(numbers)), "sd": _deviation(numbers), "seeds": len(numbers)}
        if variant != variants[0]:
            table[variant]["paired"] = _paired(by_seed, found[variants[0]])
    return table


def _paired(found: dict[int, float], base: dict[int, float]) -> dict[str, float | None]:
    seeds = sorted(found.keys() & base.keys())
    a, b = np.array([found[s] for s in seeds]), np.array([base[s] for s in seeds])
    testable = len(seeds) > 2 and float(np.ptp(a - b)) > 1e-12
    return {"difference": float((a - b).mean()), "p": float(ttest_rel(a, b).pvalue) if testable else None}


def _deviation(numbers: Sequence[float]) -> float:
    return float(np.std(numbers, ddof=1)) if len(numbers) > 1 else 0.0


def _difference(paired: dict[str, Any]) -> str:
    p = "not tested" if paired["p"] is None else f"p = {paired['p']:.2g}"
    return f"{paired['difference']:+.4f} ({p})"


def _cell(value: dict[str, Any]) -> str:
    return f"{number(value['mean'])} +- {number(value['sd'])}"
