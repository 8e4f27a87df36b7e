"""The beginning of a report, and the means of an ablation, as a terminal shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from softkin.display import escape, spelled
from softkin_training import report_tables as tables
from softkin_training.ablation_table import measures_of
from softkin_training.report import Report
from softkin_training.report_markdown import opening, promise

SETS = 20
"""Outlier sets that are shown by themselves at most: more would push all else off the screen."""


def print_summary(report: Report) -> None:
    """Print promise, notes, what every score gives in the mean over the outlier sets, and the bundle's own on each set.

    What the other scores give on each set is in the report's files: a dozen columns fit no terminal. Names of scores
    and classes come from other people's files, and neither move the cursor nor colour anything.
    """
    console = Console(emoji=False)
    paragraphs = [f"{report.detector} {report.version}: {opening(report)}", promise(report)]
    for text in [*paragraphs, *(f"* {note}" for note in report.notes)]:
        console.print(Text(spelled(text)), end="\n\n")
    means = tables.means(report)
    _print_table(console, means.title, means.head[:1], means.head[1:], means.rows)
    if len(report.outlier_sets) > 1:
        sets = tables.by_set(report, SETS)
        console.print()
        _print_table(console, sets.title, sets.head[:1], sets.head[1:], sets.rows)


def print_ablation(table: dict[str, Any]) -> None:
    """Print what every variant gives in the mean over seeds; deviations and differences by score are in the files.

    Args:
        table: from `ablation_table.summarise`.
    """
    console, baseline = Console(emoji=False), table["baseline"]
    accuracies = []
    for network, a in table["accuracy"].items():
        paired = a.get("paired", {"difference": None, "p": None})
        difference = "" if paired["difference"] is None else f"{paired['difference']:+.4f}"
        p = "" if paired["p"] is None else f"{paired['p']:.2g}"
        accuracies.append([tables.Cell(text) for text in (network, tables.number(a["mean"]), difference, p)])
    _print_table(
        console, f"Accuracy, and its difference to {baseline}", ["network"], ["accuracy", "difference", "p"], accuracies
    )
    measures, best = measures_of(table)
    rows = []
    for row in table["rows"]:
        means = {m: tables.number(row[m]["mean"] if m in row else None) for m in measures}
        cells = [tables.Cell(text, text == best.get(m)) for m, text in means.items()]
        rows.append([tables.Cell(row["score"]), tables.Cell(row["train"]), *cells])
    _print_table(console, "Means over seeds", ["score", "network"], [m.replace("_", " ") for m in measures], rows)


def _print_table(
    console: Console,
    title: str,
    names: Sequence[str],
    numbers: Sequence[str],
    rows: Sequence[Sequence[tables.Cell]],
) -> None:
    """A table of which the first columns are names, as wide as there is room, and the others numbers."""
    # As narrow as a number or a word, which leaves the room to the names: they would be folded otherwise.
    texts = [[row[i].text for row in rows] for i in range(len(names), len(names) + len(numbers))]
    widths = [max(map(len, [*head.split(), tables.number(1.0), *of])) for head, of in zip(numbers, texts, strict=True)]
    narrow = (Column(head, width=width) for head, width in zip(numbers, widths, strict=True))
    shown = Table(*(Column(head, overflow="fold") for head in names), *narrow, title=escape(title))
    for row in rows:
        shown.add_row(*(f"[bold]{escape(c.text)}[/bold]" if c.best else escape(c.text) for c in row))
    console.print(shown, highlight=False)
