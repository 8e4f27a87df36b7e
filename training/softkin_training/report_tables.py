"""The tables of a report, for Markdown and HTML alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from softkin_training.detection_metrics import Rate
from softkin_training.report import HIGHER_IS_BETTER, Corrupted, Metric, Report

METRIC_NAMES: dict[Metric, str] = {
    "auroc": "AUROC",
    "aupr_out": "AUPR_OUT",
    "aupr_in": "AUPR_IN",
    "fpr95": "FPR95",
    "fpr95_id": "FPR95_ID",
}
ALL = "all"


@dataclass(frozen=True)
class Cell:
    """One entry of a table."""

    text: str
    best: bool = False
    """The best of its column, as far as the digits shown tell."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with a heading."""

    title: str
    note: str = ""
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class _Column:
    head: str
    values: Sequence[float | None]
    higher: bool | None = None
    """Which end is best; None where none is."""
    texts: Sequence[str] | None = None

    def cells(self) -> list[Cell]:
        texts = self.texts or [number(v) for v in self.values]
        if self.higher is None:
            return [Cell(t) for t in texts]
        shown = [None if v is None else float(number(v)) for v in self.values]
        known = [v for v in shown if v is not None]
        best = (max if self.higher else min)(known) if len(known) > 1 else None
        return [Cell(t, best=v is not None and v == best) for t, v in zip(texts, shown, strict=True)]


def number(value: float | None) -> str:
    """Four digits; empty for None."""
    return "" if value is None else f"{value:.4f}"


def interval(value: Rate | None) -> str:
    """A rate with its interval; empty for None."""
    return "" if value is None else f"{value.value:.4f} [{value.low:.4f}, {value.high:.4f}]"


def group_title(group: str) -> str:
    """Heading of the mean over a group of outlier sets."""
    return "mean" if group == ALL else f"mean {group}"


def overview(report: Report) -> Table:
    """What most readers want: AUROC, false alarms and outliers caught, per set and in the mean."""
    return _scores_table(report, "All scores", [*_aurocs(report), *_flagged(report)])


def means(report: Report) -> Table:
    """AUROC, false alarms and outliers caught, in the mean over the near and the far outlier sets, or over all."""
    sets = report.outlier_sets
    title = f"Against {sets[0]}" if len(sets) == 1 else f"Mean over {len(sets)} outlier sets"
    apart = len(report.groups) > 1  # then that over all is between them
    aurocs, caught = _mean_aurocs(report)[apart:], _mean_caught(report)[apart:]
    return _scores_table(report, title, [*aurocs, _false_alarms(report), *caught])


def by_set(report: Report, most: int) -> Table:
    """AUROC and outliers caught by the bundle's own score, a row for each outlier set.

    Args:
        report: what was found.
        most: of more sets than these, only those with the lowest AUROC, the lowest first.
    """
    own = report.scores["softkin"]
    names = list(report.outlier_sets)
    title = f"{own.title}, by outlier set"
    if len(names) > most:
        title += f": the {most} of {len(names)} with the lowest AUROC"
        names = sorted(names, key=lambda n: own.outliers[n].auroc)[:most]
    rows = []
    for name in names:
        d = own.outliers[name]
        marked = f"{name} (near)" if name in report.near else name
        rows.append((marked, str(d.rows), number(d.auroc), number(d.caught.value if d.caught else None)))
    head = ("outlier set", "rows", "AUROC", "caught")
    return Table(title=title, head=head, rows=tuple(tuple(map(Cell, row)) for row in rows))


def separation(report: Report) -> Table:
    """AUROC per outlier set and in the mean."""
    return _scores_table(report, "AUROC", _aurocs(report))


def flagged(report: Report) -> Table:
    """False alarms and outliers caught at alpha, per set and in the mean."""
    return _scores_table(report, f"Flagged at alpha = {report.alpha:g}", _flagged(report))


def _aurocs(report: Report) -> list[_Column]:
    scores = list(report.scores.values())
    columns = [_Column(f"AUROC {n}", [s.outliers[n].auroc for s in scores], True) for n in report.outlier_sets]
    return [*columns, *_mean_aurocs(report)]


def _mean_aurocs(report: Report) -> list[_Column]:
    scores = report.scores.values()
    return [
        _Column(f"{group_title(group)} AUROC", [s.mean("auroc", names) for s in scores], True)
        for group, names in report.groups.items()
    ]


def _flagged(report: Report) -> list[_Column]:
    scores = list(report.scores.values())
    columns = [_false_alarms(report)]
    for n in report.outlier_sets:
        caught = [s.outliers[n].caught for s in scores]
        columns.append(_Column(f"caught {n}", [c.value if c else None for c in caught], True))
    return [*columns, *_mean_caught(report)]


def _false_alarms(report: Report) -> _Column:
    values = [s.false_alarms.value if s.false_alarms else None for s in report.scores.values()]
    return _Column("false alarms", values)


def _mean_caught(report: Report) -> list[_Column]:
    scores = report.scores.values()
    return [
        _Column(f"{group_title(group)} caught", [s.caught(names) for s in scores], True)
        for group, names in report.groups.items()
    ]


def metrics(report: Report, title: str, names: Sequence[str]) -> Table:
    """Every metric against one outlier set, or in the mean over several."""
    scores = list(report.scores.values())
    columns = [
        _Column(METRIC_NAMES[m], [s.mean(m, names) for s in scores], higher) for m, higher in HIGHER_IS_BETTER.items()
    ]
    caught = [s.caught(names) for s in scores]
    texts = [interval(s.outliers[names[0]].caught) for s in scores] if len(names) == 1 else None
    columns.append(_Column(f"caught at {report.alpha:g}", caught, True, texts))
    return _scores_table(report, title, columns)


def false_alarms(report: Report) -> Table:
    """Whether each score's p-values keep their promise."""
    scores = list(report.scores.values())
    found = [s.uniformity for s in scores]
    columns = [
        _Column("calibration rows", [], texts=[str(s.calibration_size or "") for s in scores]),
        _Column(f"false alarms at {report.alpha:g}", [], texts=[interval(s.false_alarms) for s in scores]),
        _Column("KS distance", [u.statistic if u else None for u in found]),
        _Column("KS test, p", [u.p_value if u else None for u in found]),
    ]
    return _scores_table(report, "False alarms and p-values of inliers", columns)


def classifier(report: Report) -> Table | None:
    """What the classifier's probabilities are worth; None where there are none, or no labels."""
    c = report.classifier
    if c is None:
        return None
    values = {
        "accuracy": c.accuracy,
        "ECE": c.ece,
        "adaptive ECE": c.adaptive_ece,
        "Brier score": c.brier,
        "NLL": c.nll,
    }
    return Table(
        title="The classifier",
        note=f"On {c.rows} labelled inliers.",
        head=("rows", *values),
        rows=((Cell(str(c.rows)), *(Cell(number(v)) for v in values.values())),),
    )


def credibility(report: Report) -> Table | None:
    """Accuracy by credibility; None without labels."""
    if not report.credibility:
        return None
    return Table(
        title="Accuracy by credibility",
        head=("credibility", "inliers", "accuracy"),
        rows=tuple(
            (Cell(f"{b.low:.1f} to {b.high:.1f}"), Cell(str(b.rows)), Cell(number(b.accuracy)))
            for b in report.credibility
        ),
    )


def corruptions(report: Report) -> Table | None:
    """Share flagged, and accuracy, by kind and severity; None where nothing was corrupted."""
    c = report.corruptions
    if not c.levels:
        return None
    severities = sorted({x.severity for x in c.levels})
    at = {(x.kind, x.severity): x for x in c.levels}
    return Table(
        title="Corrupted inliers",
        note=f"Share of {c.rows} inliers flagged at {report.alpha:g}; in brackets the accuracy of the class predicted, "
        "on all rows and on those accepted.",
        head=("corruption", *("as they are" if s == 0 else f"severity {s}" for s in severities)),
        rows=tuple((Cell(kind), *(Cell(_corrupted(at[kind, s])) for s in severities)) for kind in c.units),
    )


def _corrupted(x: Corrupted) -> str:
    known = [number(a) or "none" for a in (x.accuracy, x.accuracy_of_accepted)] if x.accuracy is not None else []
    return number(x.flagged.value) + (f" ({', '.join(known)})" if known else "")


def _scores_table(report: Report, title: str, columns: Sequence[_Column]) -> Table:
    cells = [c.cells() for c in columns]
    rows = tuple((Cell(s.title), *(column[i] for column in cells)) for i, s in enumerate(report.scores.values()))
    filled = tuple(row for row in rows if any(cell.text for cell in row[1:]))
    # Without calibration rows the bundle's own score alone has false alarms.
    return Table(title=title, head=("score", *(c.head for c in columns)), rows=filled if len(filled) == 1 else rows)
