"""Tables, Markdown, JSON, pictures and page of a report, without a browser."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from hostile_report import NAMES, hostile_report
from softkin.nonconformity import PART_MEANINGS, PARTS
from softkin_training import report_figures as figures
from softkin_training import report_tables as tables
from softkin_training.report import HIGHER_IS_BETTER
from softkin_training.report_html import html
from softkin_training.report_markdown import markdown

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def report(tiny):
    """With names that break careless pages."""
    return hostile_report(tiny)


@pytest.fixture(scope="module")
def page(report):
    """Its HTML."""
    return html(report)


def column(table, head):
    """Cells of one column."""
    at = table.head.index(head)
    return [row[at] for row in table.rows]


def test_the_best_of_a_column_is_marked_as_far_as_its_digits_tell(report):
    """Highest AUROC, lowest FPR95; ties all; nothing where no end is best."""
    table = tables.metrics(report, "", report.outlier_sets)

    for metric, higher in HIGHER_IS_BETTER.items():
        values = [round(s.mean(metric, report.outlier_sets), 4) for s in report.scores.values()]
        best = max(values) if higher else min(values)
        assert [c.best for c in column(table, tables.METRIC_NAMES[metric])] == [v == best for v in values]
    assert not any(c.best for c in column(tables.overview(report), "false alarms"))


def test_a_score_without_calibration_leaves_its_cells_empty(report):
    """Not zero, and never the best."""
    plain = dataclasses.replace(
        report.scores["energy"],
        false_alarms=None,
        uniformity=None,
        calibration_size=None,
        outliers={k: dataclasses.replace(d, caught=None) for k, d in report.scores["energy"].outliers.items()},
    )
    found = dataclasses.replace(report, scores={**report.scores, "energy": plain})

    for table in (tables.overview(found), tables.metrics(found, "", [NAMES[0]]), tables.false_alarms(found)):
        at = list(found.scores).index("energy")
        for head, cell in zip(table.head, table.rows[at], strict=True):
            if head.startswith(("false", "caught", "mean caught", "KS", "calibration")):
                assert (cell.text, cell.best) == ("", False)
    assert "None" not in markdown(found)
    html(found)


def test_where_no_other_score_is_calibrated_the_bundles_own_stands_alone_and_is_no_best(report):
    """Rows of nothing say nothing, and the best is the best of several."""

    def bare(score):
        sets = {k: dataclasses.replace(d, caught=None) for k, d in score.outliers.items()}
        return dataclasses.replace(score, false_alarms=None, uniformity=None, calibration_size=None, outliers=sets)

    scores = {k: s if k == "softkin" else bare(s) for k, s in report.scores.items()}
    found = dataclasses.replace(report, scores=scores)

    for table in (tables.flagged(found), tables.false_alarms(found)):
        [row] = table.rows
        assert row[0].text == report.scores["softkin"].title
        assert not any(cell.best for cell in row)
    assert len(tables.separation(found).rows) == len(report.scores)
    assert not any(cell.best for cell in column(tables.overview(found), "mean caught"))


def test_markdown_tables_have_as_many_cells_in_every_row(report):
    """A bar in a name is no border."""
    lines = markdown(report).splitlines()

    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) > 60
    width = None
    for line in lines:
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else None
        assert cells is None or width is None or cells == width
        width = cells
    assert "<script" not in re.sub(r"\\<", "", markdown(report))
    assert r"a\|b \*c\* \`d\`" in markdown(report)


def test_markdown_states_promise_means_sets_and_notes(report):
    """Certificate, near and far, FPR95 in both meanings, corrupted inliers."""
    text = markdown(report)

    assert f"at most {report.certificate.false_alarm_bound:.4f}, with confidence 0.95" in text
    assert "a \\<note> of its own" in text
    for heading in ("## Mean over 4 outlier sets", "## Mean over 3 far outlier sets", "## The classifier"):
        assert heading in text
    assert "FPR95 | FPR95_ID" in text
    assert "## Accuracy by credibility" in text
    assert f"| noise | {report.corruptions.levels[0].flagged.value:.4f} (0.9000, 0.9500)" in text
    assert "Inliers were not corrupted: vectors." in markdown(
        dataclasses.replace(report, corruptions=dataclasses.replace(report.corruptions, levels=[], skipped="vectors"))
    )


def test_the_page_titles_means_as_markdown_does(report, page):
    """Of all sets, and of near or far ones."""
    for heading in ("Mean over all 4 outlier sets", "Mean over 3 far outlier sets"):
        assert f"<h3>{heading}</h3>" in page


def test_json_holds_plain_finite_values(report):
    """It can be read back by any reader: no NaN, no infinity."""
    raw = json.loads(json.dumps(report.to_dict(), allow_nan=False))

    assert raw["schema_version"] == 1
    assert raw["certificate"]["false_alarm_bound"] == report.certificate.false_alarm_bound
    assert len(raw["roc_rates"]) == len(raw["scores"]["softkin"]["outliers"][NAMES[0]]["roc"])
    assert raw["classifier"]["reliability"][0]["rows"] == report.classifier.reliability[0].rows
    assert raw["corruptions"]["levels"][0]["flagged"]["rows"] == 80
    assert set(raw["scores"]["softkin"]["means"]) == {"all", "near", "far"}


class Page(HTMLParser):
    """Elements, open tags, attributes, and text outside of style."""

    VOID = ("meta", "br", "img", "path", "use", "rect")

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.open, self.text, self.faults = [], [], [], "", []

    def handle_starttag(self, tag, attrs):
        """Counts it as open."""
        self.tags.append(tag)
        self.attributes += [(tag, k, v) for k, v in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        """Opens nothing."""
        self.tags.append(tag)
        self.attributes += [(tag, k, v) for k, v in attrs]

    def handle_endtag(self, tag):
        """Must close what was opened last."""
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data):
        """Text as a reader sees it."""
        if "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def parsed(page):
    """The page as a parser sees it."""
    found = Page()
    found.feed(page)
    return found


def test_the_page_is_well_formed_and_its_ids_are_unique(parsed):
    """Pictures bring ids of their own, which must not clash; every reference finds its target."""
    assert (parsed.faults, parsed.open) == ([], [])
    ids = [v for _, k, v in parsed.attributes if k == "id"]
    assert len(ids) == len(set(ids))
    targets = {v[1:] for _, k, v in parsed.attributes if k in ("href", "xlink:href") and v.startswith("#")}
    assert targets <= set(ids)


def test_the_page_needs_nothing_else(page, parsed):
    """No script, no image, link or font from anywhere, and a policy that forbids what slipped in."""
    assert not {"script", "link", "iframe", "img", "object", "image"} & set(parsed.tags)
    for _, key, value in parsed.attributes:
        assert not key.startswith("on")
        if key in ("href", "xlink:href", "src"):
            assert value.startswith("#")
        elif value and not key.startswith("xmlns") and key not in ("aria-label",):
            assert "//" not in value, (key, value)
    assert "@import" not in page
    assert page.index("Content-Security-Policy") < page.index("<style")
    assert "default-src 'none'" in page


def test_names_stand_in_the_page_as_they_are(parsed):
    """Escaped, in tables and in pictures alike; a dollar sign is no formula."""
    for name in NAMES:
        assert f"AUROC {name}" in parsed.text
        assert f"{name} (10 rows" in parsed.text
    assert "a <note> of its own" in parsed.text


def test_pictures_write_names_as_they_are(report):
    """In one piece: a dollar sign is no formula, a leading underscore hides nothing, long names are cut."""
    _, long, formula, hidden = (figures.score_histogram(report, name, f"scores{i}") for i, name in enumerate(NAMES))

    assert f">{NAMES[2]}<" in formula
    assert f"> {NAMES[3]}<" in hidden
    assert "…<" in long


def test_the_promise_comes_first(report, parsed):
    """Alpha, n and certificate before any table."""
    before = parsed.text[: parsed.text.index("All scores")]

    assert "At alpha = 0.05 at most 5% of inliers are flagged" in before
    assert "on average over calibration sets, for any network." in before
    assert "n = 300" in before
    assert f"{100 * report.certificate.false_alarm_bound:.3g}%" in before


def test_a_broken_promise_is_said_aloud(report):
    """Where so many false alarms cannot be luck, the page warns."""
    worse = dataclasses.replace(report.p_values, chance_of_false_alarms=1e-5)

    assert "So many false alarms are not luck" in html(dataclasses.replace(report, p_values=worse))
    assert "So many false alarms are not luck" not in html(report)


def test_what_became_of_corrupted_inliers_stands_in_a_table(report):
    """Beside the pictures, which have no figures to copy; a note stands above a table that has one, and no other."""
    page = html(report)
    part = page[page.index('<h2 id="corrupted">') : page.index('<h2 id="glossary">')]

    flagged = {(x.kind, x.severity): x.flagged.value for x in report.corruptions.levels}
    assert "were not corrupted" not in part
    for kind in report.corruptions.units:
        row = re.search(rf'<th scope="row">{kind}</th>(.*?)</tr>', part)[1]
        shown = [float(value) for value in re.findall(r"<td>([\d.]+)", row)]
        assert shown == [pytest.approx(flagged[kind, s], abs=5e-5) for s in range(6)]
    assert '<p class="note">Share of 80 inliers flagged' in part
    assert '<p class="note"></p>' not in page
    assert "bare vectors" not in page


def test_every_column_is_explained(report, parsed):
    """The glossary has each metric by the name that the tables use, and every part that a score can be made of."""
    glossary = parsed.text[parsed.text.rindex("What the figures mean") :]  # the first is the link to it
    for name in (*tables.METRIC_NAMES.values(), "false alarms", "caught", "KS distance", "ECE", "NLL", "credibility"):
        assert name in glossary
    for part in PARTS:
        assert part.replace("_", " ") + PART_MEANINGS[part] in glossary


def test_pictures_repeat_byte_for_byte_and_are_xml(report):
    """So that reports can be compared; their colours are the page's."""
    one, two = (figures.roc_curves(report, NAMES[2], "roc0") for _ in range(2))

    assert one == two
    root = ElementTree.fromstring(one.replace("xlink:href", "href"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.attrib["aria-label"] == f"ROC curves against {NAMES[2]}"
    assert "var(--series-0)" in one
    assert "#0101" not in one


def test_roc_curves_show_the_bundle_the_best_others_and_max_softmax(report):
    """However badly max softmax does: everybody knows it."""
    svg = figures.roc_curves(report, NAMES[3], "roc0")

    assert "softkin (joint" in svg
    assert "max softmax" in svg
    labels = [s.title for s in report.scores.values() if f">{s.title}<" in svg]
    assert len(labels) <= 6


def test_without_labels_logits_or_images_the_page_has_fewer_parts(report):
    """And says why."""
    bare = dataclasses.replace(
        report,
        classifier=None,
        credibility=(),
        accuracy=None,
        near=(),
        notes=(),
        corruptions=dataclasses.replace(report.corruptions, levels=[], units={}, skipped="rows are no images"),
    )
    found = Page()
    found.feed(html(bare))

    assert (found.faults, found.open) == ([], [])
    assert "The classifier" not in found.text
    assert ("a", "href", "#classifier") not in found.attributes
    assert ("a", "href", "#corrupted") in found.attributes
    assert "Inliers were not corrupted: rows are no images." in found.text
    assert "mean near" not in found.text
