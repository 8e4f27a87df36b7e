"""Every figure of a report's tables, of its Markdown and of its page stands under its own head."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hostile_report import hostile_report
from softkin_training import report_tables as tables
from softkin_training.detection_metrics import Rate
from softkin_training.report import HIGHER_IS_BETTER, Detection
from softkin_training.report_html import html
from softkin_training.report_markdown import markdown, opening, plain, promise
from softkin_training.report_tables import number

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def report(tiny):
    """Of two outlier sets, one of them near, each score with figures of its own."""
    found = hostile_report(tiny)
    scores = {}
    for i, (name, score) in enumerate(found.scores.items()):
        one, two = (
            Detection(rows=10, caught=share(0.1 * k + i / 100), roc=score.outliers[old].roc, **metrics(k, i))
            for k, old in enumerate(list(score.outliers)[:2], start=1)
        )
        scores[name] = dataclasses.replace(score, outliers={"one": one, "two": two})
    bars = dict(zip(("one", "two"), found.histogram.outliers.values(), strict=False))
    histogram = dataclasses.replace(found.histogram, outliers=bars)
    return dataclasses.replace(found, scores=scores, near=("two",), histogram=histogram)


def share(value):
    """A rate with an interval around it."""
    return Rate(value=value, low=value - 0.05, high=value + 0.04, count=3, rows=10)


def metrics(k, i):
    """Figures that differ between metrics, sets and scores."""
    names = list(HIGHER_IS_BETTER)
    return {name: 0.1 * (1 + j) + 0.03 * k + i / 1000 for j, name in enumerate(names)}


def texts(table, head):
    """Of one column, without the marks."""
    return [row[table.head.index(head)].text for row in table.rows]


def best(table, head):
    """Rows whose cell of a column is marked."""
    return [i for i, row in enumerate(table.rows) if row[table.head.index(head)].best]


def test_rates_of_false_positives_are_better_the_lower_they_are():
    """All other figures the higher."""
    assert [m for m, higher in HIGHER_IS_BETTER.items() if not higher] == ["fpr95", "fpr95_id"]


def test_the_share_caught_is_better_the_higher_it_is(report):
    """Set by set, in the mean, and in the mean of a group."""
    last = len(report.scores) - 1
    table = tables.flagged(report)

    for head in ("caught one", "caught two", "mean caught", "mean near caught", "mean far caught"):
        assert best(table, head) == [last], head
    scores = report.scores.values()
    assert texts(table, "caught two") == [number(s.outliers["two"].caught.value) for s in scores]
    assert texts(table, "mean caught") == [number(s.mean_caught) for s in scores]
    assert texts(table, "mean near caught") == [number(s.outliers["two"].caught.value) for s in scores]
    assert texts(table, "false alarms") == [number(s.false_alarms and s.false_alarms.value) for s in scores]


def test_a_column_without_any_figure_has_no_best(report):
    """Nothing is not the best of nothings."""
    bare = {
        k: dataclasses.replace(s, outliers={n: dataclasses.replace(d, caught=None) for n, d in s.outliers.items()})
        for k, s in report.scores.items()
    }

    assert best(tables.flagged(dataclasses.replace(report, scores=bare)), "mean caught") == []


def test_the_better_of_two_scores_is_marked(report):
    """Two are enough to compare, and one is not: it is no best."""
    own, other, *_ = report.scores.items()

    for scores, marked in (([own, other], [1]), ([own], [])):
        found = dataclasses.replace(report, scores=dict(scores))
        for head in ("AUROC one", "AUROC two", "mean AUROC"):
            assert best(tables.separation(found), head) == marked, head
        assert best(tables.flagged(found), "caught two") == marked


def test_one_set_shows_the_interval_of_its_share_caught_and_several_their_mean(report):
    """Low end first."""
    for sets, expected in (
        (["two"], [f"{0.2 + i / 100:.4f} [{0.15 + i / 100:.4f}, {0.24 + i / 100:.4f}]" for i in range(3)]),
        (["one", "two"], [f"{0.15 + i / 100:.4f}" for i in range(3)]),
    ):
        assert texts(tables.metrics(report, "", sets), f"caught at {report.alpha:g}")[:3] == expected


def test_means_are_named_after_what_they_are_taken_over(report):
    """A single set by its name."""
    assert tables.means(report).title == "Mean over 2 outlier sets"
    scores = {
        k: dataclasses.replace(s, outliers={"one": s.outliers["one"]}) for k, s in report.scores.items()
    }  # fmt: skip
    assert tables.means(dataclasses.replace(report, scores=scores, near=())).title == "Against one"


def test_false_alarms_stand_beside_what_says_whether_they_are_luck(report):
    """Rows behind each score's p-values, interval, distance and test of samples."""
    table = tables.false_alarms(report)

    for i, s in enumerate(report.scores.values()):
        u = s.uniformity
        assert [cell.text for cell in table.rows[i][1:]] == [
            str(s.calibration_size or ""),
            tables.interval(s.false_alarms),
            number(u and u.statistic),
            number(u and u.p_value),
        ]


def test_the_classifiers_figures_are_its_own(report):
    """In the order of their heads; and accuracy by credibility, bin by bin."""
    c = dataclasses.replace(report.classifier, rows=7, accuracy=0.1, ece=0.2, adaptive_ece=0.3, brier=0.4, nll=0.5)
    table = tables.classifier(dataclasses.replace(report, classifier=c))

    assert table.head == ("rows", "accuracy", "ECE", "adaptive ECE", "Brier score", "NLL")
    assert [cell.text for cell in table.rows[0]] == ["7", "0.1000", "0.2000", "0.3000", "0.4000", "0.5000"]
    found = [[cell.text for cell in row] for row in tables.credibility(report).rows]
    assert found == [[f"{b.low:.1f} to {b.high:.1f}", str(b.rows), number(b.accuracy)] for b in report.credibility]
    assert len(found) == 10


def test_corrupted_rows_show_both_accuracies_where_they_are_known(report):
    """Of all rows first; none where all were flagged; an accuracy of zero is one; nothing without labels."""
    level = next(x for x in report.corruptions.levels if x.severity == 5)
    shown = number(level.flagged.value)

    for accuracy, accepted, text in (
        (0.4, 0.6, " (0.4000, 0.6000)"),
        (0.0, None, " (0.0000, none)"),
        (None, None, ""),
    ):
        levels = [dataclasses.replace(level, accuracy=accuracy, accuracy_of_accepted=accepted)]
        corruptions = dataclasses.replace(report.corruptions, levels=levels, units={level.kind: ""})
        table = tables.corruptions(dataclasses.replace(report, corruptions=corruptions))
        assert table.head == ("corruption", "severity 5")
        assert table.rows[0][1].text == shown + text
    assert tables.corruptions(report).head[:2] == ("corruption", "as they are")


def test_json_has_the_means_of_each_group(report):
    """Named as they are."""
    raw = report.to_dict()["scores"]["softkin"]

    assert raw["mean_auroc"] == pytest.approx(0.145)
    assert raw["mean_caught"] == pytest.approx(0.15)
    assert {group: means["caught"] for group, means in raw["means"].items()} == pytest.approx(
        {"all": 0.15, "near": 0.2, "far": 0.1}
    )
    assert {group: means["auroc"] for group, means in raw["means"].items()} == pytest.approx(
        {"all": 0.145, "near": 0.16, "far": 0.13}
    )
    assert report.scores["softkin"].mean("auroc", ["one", "one", "two"]) == pytest.approx(0.14)
    means = {name: score["means"]["far"]["auroc"] for name, score in report.to_dict()["scores"].items()}
    assert means == {name: score.outliers["one"].auroc for name, score in report.scores.items()}


@pytest.mark.parametrize("near", [(), ("one", "two")], ids=["none", "all"])
def test_sets_of_one_kind_are_no_groups(report, near):
    """The other would be a mean over nothing."""
    found = dataclasses.replace(report, near=near)

    assert found.groups == {"all": ("one", "two")}
    assert found.to_dict()["scores"]["softkin"]["means"].keys() == {"all"}


def test_the_promise_is_held_against_what_came_of_it(report):
    """Count, rows, interval and chance; accuracy where it is known."""
    scores = report.scores | {"softkin": dataclasses.replace(report.scores["softkin"], false_alarms=share(0.3))}
    found = dataclasses.replace(
        report, scores=scores, p_values=dataclasses.replace(report.p_values, chance_of_false_alarms=0.01234)
    )

    assert promise(found).endswith(
        "Found: 3 of 10 inliers, 0.3000 [0.2500, 0.3400]; the chance of so many or more is 0.0123."
    )
    assert ", accuracy 0.2500. Every" in opening(dataclasses.replace(report, accuracy=0.25))
    assert "accuracy" not in opening(dataclasses.replace(report, accuracy=None))


def test_markdown_has_every_table_once_under_its_heading(report):
    """But the first, under the promise; a group of one set has none; the best figures stand in bold."""
    lines = markdown(report).splitlines()

    assert [line for line in lines if line.startswith("## ")] == [
        "## Mean over 2 outlier sets",
        "## Against one (10 rows)",
        "## Against two (10 rows, near)",
        "## False alarms and p-values of inliers",
        "## The classifier",
        "## Accuracy by credibility",
        "## Corrupted inliers",
    ]
    assert f"On {report.classifier.rows} labelled inliers." in lines
    highest = list(report.scores.values())[-1]
    assert any(line.startswith(f"| {plain(highest.title)} | **0.") for line in lines)


def test_markdown_begins_with_what_was_measured_what_is_promised_and_all_scores(report):
    """Notes between them, as a list; the last line ends the last table, or says why inliers were not corrupted."""
    named = dataclasses.replace(report, detector="*my*", version="<1>", notes=("One *note*.", "Two."))

    lines = markdown(named).splitlines()

    assert lines[:11] == [
        "# \\*my\\* \\<1>",
        "",
        opening(named),
        "",
        promise(named),
        "",
        "* One \\*note\\*.",
        "* Two.",
        "",
        "| score | " + " | ".join(map(plain, tables.overview(report).head[1:])) + " |",
        "|" + "---|" * len(tables.overview(report).head),
    ]
    assert len([line for line in lines[11 : lines.index("", 11)] if line.startswith("| ")]) == len(report.scores)
    assert markdown(dataclasses.replace(named, notes=())).splitlines()[4:7] == [promise(named), "", lines[9]]
    skipped = dataclasses.replace(report.corruptions, levels=[], skipped="rows are *vectors*")
    text = markdown(dataclasses.replace(report, corruptions=skipped))
    assert text.endswith("|\n\nInliers were not corrupted: rows are \\*vectors\\*.\n")


def test_a_detector_whose_false_alarms_are_unknown_promises_and_finds_nothing(report):
    """The certificate stands alone."""
    own = dataclasses.replace(report.scores["softkin"], false_alarms=None)

    text = promise(dataclasses.replace(report, scores=report.scores | {"softkin": own}))

    assert text.startswith(f"Promised: at alpha = {report.alpha:g} at most {report.alpha:g} of inliers are flagged")
    assert text.endswith(f"with confidence {report.certificate.confidence:g}.")


def test_tables_of_markdown_stand_apart(report):
    """A blank line between heading, note, table and heading: else they would be one paragraph."""
    text = markdown(report)

    assert "\n\n\n" not in text
    for heading in re.findall(r"^## .*$", text, flags=re.MULTILINE):
        assert f"\n\n{heading}\n\n" in text
    notes = re.findall(r"^(.*)\n\n\|", text, flags=re.MULTILINE)
    assert f"On {report.classifier.rows} labelled inliers." in notes


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\\b", "a\\\\b"),
        ("two\nlines  and\tmore", "two lines and more"),
        ("[link](http://x)", "[link]\\(http://x)"),
        ("a|b*c`d<e", "a\\|b\\*c\\`d\\<e"),
        ("__init__ of snake_case_", "\\_\\_init\\_\\_ of snake_case\\_"),
        ("~old~ &lt; &#60; R&D; A & B", "\\~old\\~ \\&lt; \\&#60; R\\&D; A & B"),
    ],
)
def test_text_is_shown_as_it_is(text, shown):
    """On one line, and neither code nor link."""
    assert plain(text) == shown


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab1 _*~`<>[]()!&;#\\|:/\"'.-+=", max_size=14))
def test_a_cell_of_a_table_shows_any_text_as_it_is(text):
    """To whoever renders the page."""
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(f"| head |\n|---|\n| {plain(text)} |\n")

    _, cell = (token.children for token in page if token.type == "inline")
    assert {part.type for part in cell} <= {"text", "text_special"}
    assert "".join(part.content for part in cell) == " ".join(text.split())


@pytest.fixture(scope="module")
def judged(report):
    """The report with three false alarms in ten rows, which is hardly luck."""
    own = dataclasses.replace(report.scores["softkin"], false_alarms=share(0.3), title="<own>", source="<bundle>")
    p_values = dataclasses.replace(report.p_values, chance_of_false_alarms=0.01234)
    scores, notes = report.scores | {"softkin": own}, ("One.", "<Two>.")
    return dataclasses.replace(report, scores=scores, p_values=p_values, accuracy=0.875, notes=notes)


@pytest.fixture(scope="module")
def page(judged):
    """Its page."""
    return html(judged)


@pytest.mark.parametrize(
    "text",
    [
        "Found: 3 of 10 inliers flagged, <strong>30%</strong> (95% interval 25% to 34%). Chance of so many or more, "
        "if they are like the calibration rows: 0.0123.",
        "<h1>Detection report: tiny 1</h1>",
        "500 inliers, 2 outlier sets, 300 calibration rows.",
        '<p class="warning">One.</p>',
        '<p class="warning">&lt;Two&gt;.</p>',
        "<h3>Mean over all 2 outlier sets</h3>",
        "<h3>one (10 rows)</h3>",
        "<h3>two (10 rows, near)</h3>",
        "<dt>mean AUROC</dt><dd>0.1450<small>over 2 outlier sets</small></dd>",
        "<dt>mean near AUROC</dt><dd>0.1600<small>over one outlier set</small></dd>",
        "<dt>mean far caught</dt><dd>10%<small>at alpha = 0.05</small></dd>",
        "<dt>false alarms</dt><dd>30%<small>5% are accepted</small></dd>",
        "<dt>accuracy</dt><dd>87.5%<small>of the classifier, on inliers</small></dd>",
        "<dt>&lt;own&gt;</dt><dd>&lt;bundle&gt;</dd>",
        '<tr class="own"><th scope="row">&lt;own&gt;</th>',
        "<figcaption>P-values of inliers</figcaption>",
        '<a href="#classifier">Classifier</a>',
    ],
)
def test_the_page_shows_each_figure_with_what_it_is(page, text):
    """As a share of a hundred where it is one; names from files are no markup."""
    assert text in page


def test_the_page_marks_the_bundles_own_row_and_the_best_of_each_column(page, judged):
    """The first row of every table of scores, and of no other; groups of one set have no table of their own."""
    tables_of_scores = page.count('<th scope="col">score</th>')

    assert tables_of_scores == 6  # separation, flagged, all sets, each of both, false alarms
    assert page.count('<tr class="own">') == tables_of_scores
    highest = list(judged.scores.values())[-1]
    assert f'<th scope="row">{highest.title}</th><td class="best">0.' in page
    assert page.count("Mean over") == page.count("Mean over all")
    assert f'<p class="note">On {judged.classifier.rows} labelled inliers.</p>' in page


def test_the_page_has_every_picture_over_its_caption(page):
    """Two for each outlier set, and one for each kind of corruption."""
    found = re.findall(r'<figure><svg[^>]* aria-label="([^"]*)">.*?<figcaption>(.*?)</figcaption>', page, re.DOTALL)

    curves = "ROC curves, false-positive rate on a logarithmic scale; dotted: alpha = 0.05"
    assert found == [
        ("ROC curves against one", curves),
        ("outlier scores of inliers and of one", "Outlier scores of this bundle"),
        ("ROC curves against two", curves),
        ("outlier scores of inliers and of two", "Outlier scores of this bundle"),
        ("histogram of the inliers&#x27; p-values", "P-values of inliers"),
        ("share of rows flagged at every alpha", "Share flagged at every alpha, both scales logarithmic"),
        ("accuracy by probability of the predicted class", "Reliability: accuracy by probability"),
        ("accuracy by credibility", "Credibility: accuracy by credibility (Papernot &amp; McDaniel 2018)"),
        ("inliers flagged by severity of noise", "standard deviation"),
        ("inliers flagged by severity of blur", "&lt;b&gt;"),
    ]


def test_the_page_ends_with_where_its_scores_and_figures_come_from(page, judged):
    """Of each score, and which bundle was evaluated when."""
    end = page[page.index("<h3>Where the scores come from</h3>") :]

    assert len(re.findall("<dt>.+?</dt><dd>.+?</dd>", end)) == len(judged.scores)
    assert f"<footer>Made {judged.created} by softkin-train evaluate from the bundle with digest" in end
    assert f"<code>{judged.digest}</code>" in end


@pytest.mark.parametrize(("chance", "warned"), [(0.0099, True), (0.0101, False)])
def test_one_chance_in_a_hundred_is_what_luck_is_given(judged, chance, warned):
    """Below it the page says that it is none."""
    p_values = dataclasses.replace(judged.p_values, chance_of_false_alarms=chance)

    assert ("So many false alarms are not luck" in html(dataclasses.replace(judged, p_values=p_values))) is warned


def test_credibility_alone_has_its_part_of_the_page(judged):
    """As where the network overflows on every row; an unknown accuracy has no tile."""
    found = html(dataclasses.replace(judged, classifier=None, accuracy=None))

    assert '<a href="#classifier">Classifier</a>' in found
    assert "Credibility: accuracy by credibility" in found
    assert "of the classifier, on inliers" not in found
