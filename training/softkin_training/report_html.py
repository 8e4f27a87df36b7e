"""report.html: one file that needs nothing else, neither network nor script; every name in it is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path

from softkin.nonconformity import PART_MEANINGS
from softkin_training import report_figures as figures
from softkin_training import report_tables as tables
from softkin_training.report import Report
from softkin_training.report_glossary import GLOSSARY
from softkin_training.report_markdown import same
from softkin_training.report_tables import Table, number

CSS = Path(__file__).with_name("report.css")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Content security policy: whatever slipped in would be neither fetched nor run."""
BEST, OWN = '<td class="best">', '<tr class="own">'
SUSPICIOUS = 0.01
"""A chance below it calls for a warning."""


def html(report: Report) -> str:
    """The report as an HTML page."""
    title = escape(f"Detection report: {report.detector} {report.version}")
    return (
        "\n".join(
            [
                "<!DOCTYPE html>",
                '<html lang="en">',
                "<head>",
                '<meta charset="utf-8">',
                f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f"<title>{title}</title>",
                f"<style>\n{CSS.read_text(encoding='utf-8')}</style>",
                "</head>",
                "<body>",
                *_body(report),
                "</body>",
                "</html>",
            ]
        )
        + "\n"
    )


def _body(report: Report) -> Iterator[str]:
    yield f"<h1>Detection report: {escape(report.detector)} {escape(report.version)}</h1>"
    yield (
        f'<p class="muted">{report.inlier_rows} inliers, {_sets(report.outlier_sets)}, '
        f"{report.calibration_size} calibration rows. Every score is computed on {same(report)}.</p>"
    )
    yield from _promise(report)
    for note in report.notes:
        yield f'<p class="warning">{escape(note)}</p>'
    yield from _tiles(report)
    yield _navigation(report)

    yield '<h2 id="scores">All scores</h2>'
    yield (
        "<p>Best of each column in bold on green; the bundle's own score stands first. "
        f'<a href="#glossary">What the columns mean</a>.</p>{_table(tables.separation(report))}'
    )
    yield f"<h3>Flagged at alpha = {report.alpha:g}</h3>{_table(tables.flagged(report))}"
    for group, names in report.groups.items():
        if len(names) > 1:
            which = f"all {len(names)}" if group == tables.ALL else f"{len(names)} {group}"
            yield f"<h3>Mean over {which} outlier sets</h3>"
            yield _table(tables.metrics(report, "", names))

    yield '<h2 id="sets">Outlier sets</h2>'
    for i, name in enumerate(report.outlier_sets):
        rows = report.scores["softkin"].outliers[name].rows
        yield f"<h3>{escape(name)} ({rows} rows{', near' if name in report.near else ''})</h3>"
        curves = f"ROC curves, false-positive rate on a logarithmic scale; dotted: alpha = {report.alpha:g}"
        yield _pictures(
            (figures.roc_curves(report, name, f"roc{i}"), curves),
            (figures.score_histogram(report, name, f"scores{i}"), "Outlier scores of this bundle"),
        )
        yield _table(tables.metrics(report, "", [name]))

    yield '<h2 id="p-values">False alarms and p-values</h2>'
    yield (
        "<p>If inliers are like the calibration rows, their p-values are spread evenly over 0 to 1, and at every alpha "
        "the share of them flagged is about alpha.</p>"
    )
    yield _pictures(
        (figures.p_value_histogram(report, "pvalues"), "P-values of inliers"),
        (figures.flagged_by_alpha(report, "flagged"), "Share flagged at every alpha, both scales logarithmic"),
    )
    yield _table(tables.false_alarms(report))
    yield from _classifier(report)
    yield from _corruptions(report)
    yield '<h2 id="glossary">What the figures mean</h2>'
    yield '<dl class="glossary">'
    for term, meaning in GLOSSARY.items():
        yield f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>"
    yield "</dl>"
    yield "<h3>What softkin's own scores see</h3>"
    yield "<p>A row is strange in a part where this holds; joint scores put several parts on one scale.</p>"
    yield '<dl class="glossary">'
    for part, meaning in PART_MEANINGS.items():
        yield f"<dt>{escape(part.replace('_', ' '))}</dt><dd>{escape(meaning)}</dd>"
    yield "</dl>"
    yield "<h3>Where the scores come from</h3>"
    yield '<dl class="glossary">'
    for score in report.scores.values():
        yield f"<dt>{escape(score.title)}</dt><dd>{escape(score.source)}</dd>"
    yield "</dl>"
    yield (
        f"<footer>Made {escape(report.created)} by softkin-train evaluate from the bundle with digest "
        f"<code>{escape(report.digest)}</code>. The same figures as JSON: report.json, schema {report.schema_version}."
        "</footer>"
    )


def _promise(report: Report) -> Iterator[str]:
    c, own = report.certificate, report.scores["softkin"].false_alarms
    assert own is not None, "a bundle is calibrated"
    chance, kind = report.p_values.chance_of_false_alarms, "network" if report.has_logits else "vectors"
    yield '<div class="promise">'
    yield (
        f"<p><strong>At alpha = {report.alpha:g} at most {_percent(report.alpha)} of inliers are flagged</strong>, on "
        f"average over calibration sets, for any {kind}. With this one of n = {report.calibration_size} rows the rate "
        f"is certified not to exceed <strong>{_percent(c.false_alarm_bound)}</strong>, at confidence "
        f"{_percent(c.confidence)}.</p>"
    )
    yield (
        f"<p>Found: {own.count} of {own.rows} inliers flagged, <strong>{_percent(own.value)}</strong> (95% interval "
        f"{_percent(own.low)} to {_percent(own.high)}). Chance of so many or more, if they are like the calibration "
        f"rows: {chance:.3g}.</p></div>"
    )
    if chance < SUSPICIOUS:
        yield (
            '<p class="warning">So many false alarms are not luck: these inliers differ from the rows that the bundle '
            "was calibrated with. If they are what will be served, recalibrate with a plain sample of them.</p>"
        )


def _tiles(report: Report) -> Iterator[str]:
    own = report.scores["softkin"]
    alarms = own.false_alarms
    assert alarms is not None
    tiles = [
        (f"{tables.group_title(g)} AUROC", number(own.mean("auroc", names)), f"over {_sets(names)}")
        for g, names in report.groups.items()
    ]
    tiles += [
        (f"{tables.group_title(g)} caught", _percent(own.caught(names) or 0.0), f"at alpha = {report.alpha:g}")
        for g, names in report.groups.items()
    ]
    tiles.append(("false alarms", _percent(alarms.value), f"{_percent(report.alpha)} are accepted"))
    if report.accuracy is not None:
        of = "the classifier" if report.has_logits else "the least strange class"
        tiles.append(("accuracy", _percent(report.accuracy), f"of {of}, on inliers"))
    yield '<dl class="tiles">'
    for name, value, note in tiles:
        yield f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
    yield "</dl>"


def _navigation(report: Report) -> str:
    parts = {"scores": "All scores", "sets": "Outlier sets", "p-values": "P-values"}
    if report.classifier or report.credibility:
        parts["classifier"] = "Classifier" if report.has_logits else "Predicted classes"
    parts |= {"corrupted": "Corrupted inliers", "glossary": "What the figures mean"}
    return "<nav>" + "".join(f'<a href="#{anchor}">{text}</a>' for anchor, text in parts.items()) + "</nav>"


def _classifier(report: Report) -> Iterator[str]:
    if not (report.classifier or report.credibility):
        return
    yield f'<h2 id="classifier">{"The classifier" if report.has_logits else "Predicted classes"}</h2>'
    if not report.has_logits:
        yield "<p>These are bare vectors: a row's class is the one as a member of which it is least strange.</p>"
    pictures = []
    if report.classifier:
        pictures.append((figures.reliability(report, "reliability"), "Reliability: accuracy by probability"))
    if report.credibility:
        caption = "Credibility: accuracy by credibility (Papernot & McDaniel 2018)"
        pictures.append((figures.credibility(report, "credibility"), caption))
    found = tables.classifier(report)
    if found is not None:
        yield _table(found)
    yield _pictures(*pictures)


def _corruptions(report: Report) -> Iterator[str]:
    yield '<h2 id="corrupted">Corrupted inliers</h2>'
    table, c = tables.corruptions(report), report.corruptions
    if table is None:
        yield f'<p class="muted">Inliers were not corrupted: {escape(c.skipped or "")}.</p>'
        return
    yield (
        "<p>Inliers made worse by degrees. A good detector flags more of them as the classifier gets them wrong, and "
        "keeps the accuracy of what it accepts.</p>"
    )
    yield _pictures(
        *((figures.corruption(report, kind, f"corruption{i}"), unit) for i, (kind, unit) in enumerate(c.units.items()))
    )
    yield _table(table)


def _sets(names: Iterable[str]) -> str:
    n = len(tuple(names))
    return "one outlier set" if n == 1 else f"{n} outlier sets"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _pictures(*found: tuple[str, str]) -> str:
    inside = "".join(f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>" for svg, caption in found)
    return f'<div class="pictures">{inside}</div>'


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in table.head)
    scores = table.head[0] == "score"
    body = []
    for i, (first, *cells) in enumerate(table.rows):
        row = f'<th scope="row">{escape(first.text)}</th>'
        row += "".join(f"{BEST if c.best else '<td>'}{escape(c.text)}</td>" for c in cells)
        body.append(f"{OWN if scores and i == 0 else '<tr>'}{row}</tr>")
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'{note}<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
