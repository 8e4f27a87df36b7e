"""report.md: the tables of a report as plain text."""

from __future__ import annotations

import re
from collections.abc import Iterator

from softkin_training import report_tables as tables
from softkin_training.report import Report
from softkin_training.report_tables import Table


def markdown(report: Report) -> str:
    """The report as Markdown; the best of each column stands in bold."""
    return "\n".join([*_summary(report), *_details(report)])


def opening(report: Report) -> str:
    """What was measured, on how many rows."""
    return (
        f"{report.inlier_rows} inliers, {report.calibration_size} calibration rows, alpha = {report.alpha:g}"
        + (f", accuracy {report.accuracy:.4f}" if report.accuracy is not None else "")
        + f". Every score is computed on {same(report)}; caught = share of outliers with p <= alpha."
    )


def same(report: Report) -> str:
    """What all scores share."""
    return f"the same {'network' if report.has_logits else 'vectors'}, bank and rows"


def promise(report: Report) -> str:
    """What is promised, and what came of it."""
    c, own = report.certificate, report.scores["softkin"].false_alarms
    text = (
        f"Promised: at alpha = {report.alpha:g} at most {report.alpha:g} of inliers are flagged, on average over "
        f"calibration sets. Certified for this one, with {report.calibration_size} rows: at most "
        f"{c.false_alarm_bound:.4f}, with confidence {c.confidence:g}."
    )
    if own is None:
        return text
    return (
        f"{text} Found: {own.count} of {own.rows} inliers, {tables.interval(own)}; the chance of so many or more is "
        f"{report.p_values.chance_of_false_alarms:.3g}."
    )


def _summary(report: Report) -> Iterator[str]:
    yield f"# {plain(report.detector)} {plain(report.version)}"
    yield ""
    yield opening(report)
    yield f"\n{promise(report)}\n"
    for note in report.notes:
        yield f"* {plain(note)}"
    if report.notes:
        yield ""
    yield from _table(tables.overview(report), heading=False)


def _details(report: Report) -> Iterator[str]:
    for group, names in report.groups.items():
        if len(names) > 1:
            sets = f"{group} outlier sets" if group != tables.ALL else "outlier sets"
            yield from _table(tables.metrics(report, f"Mean over {len(names)} {sets}", names))
    for name in report.outlier_sets:
        rows = report.scores["softkin"].outliers[name].rows
        kind = ", near" if name in report.near else ""
        yield from _table(tables.metrics(report, f"Against {name} ({rows} rows{kind})", [name]))
    yield from _table(tables.false_alarms(report))
    for table in (tables.classifier(report), tables.credibility(report), tables.corruptions(report)):
        if table is not None:
            yield from _table(table)
    if report.corruptions.skipped:
        yield f"Inliers were not corrupted: {plain(report.corruptions.skipped)}."
        yield ""


def _table(table: Table, *, heading: bool = True) -> Iterator[str]:
    if heading:
        yield f"## {plain(table.title)}"
        yield ""
    if table.note:
        yield f"{plain(table.note)}\n"
    yield "| " + " | ".join(map(plain, table.head)) + " |"
    yield "|" + "---|" * len(table.head)
    for row in table.rows:
        yield "| " + " | ".join(f"**{plain(c.text)}**" if c.best else plain(c.text) for c in row) + " |"
    yield ""


def plain(text: str) -> str:
    """Text that Markdown shows as it is: names come from users."""
    text = " ".join(text.split())
    for special in ("\\", "|", "*", "`", "<", "]("):
        text = text.replace(special, special[:-1] + "\\" + special[-1])
    # Within words an underscore is one; around them it makes emphasis, and an ampersand may begin a character's name.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])|~|&(?=#?\w+;)", r"\\\g<0>", text)
