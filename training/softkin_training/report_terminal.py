"""The beginning of a report as a terminal shows it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from softkin.display import escape, spelled
from softkin_training import report_tables as tables
from softkin_training.report import Report
from softkin_training.report_markdown import opening, promise


def print_summary(report: Report) -> None:
    """Print promise, notes, and what every score gives in the mean over the outlier sets.

    Each outlier set by itself is in the report's files: a dozen columns fit no terminal. Names of scores and classes
    come from other people's files, and neither move the cursor nor colour anything.
    """
    console = Console(emoji=False)
    paragraphs = [f"{report.detector} {report.version}: {opening(report)}", promise(report)]
    for text in [*paragraphs, *(f"* {note}" for note in report.notes)]:
        console.print(Text(spelled(text)), end="\n\n")
    means = tables.means(report)
    score, *numbers = means.head
    # As narrow as a number or a word, which leaves the room to the names of scores: they would be folded otherwise.
    narrow = (Column(head, width=max(map(len, [*head.split(), tables.number(1.0)]))) for head in numbers)
    shown = Table(Column(score, overflow="fold"), *narrow, title=escape(means.title))
    for row in means.rows:
        shown.add_row(*(f"[bold]{escape(c.text)}[/bold]" if c.best else escape(c.text) for c in row))
    console.print(shown, highlight=False)
