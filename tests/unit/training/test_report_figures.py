"""What the pictures of a report show, read off their legends and axes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hostile_report import NAMES, hostile_report
from read_picture import Drawn, heights
from softkin_training import report_figures as figures
from softkin_training.calibration_metrics import Bin

pytestmark = pytest.mark.training

MUTED_DOTS = "var(--muted) 0.8,1.32"
NEAR = {"rtol": 2e-3, "atol": 2e-3}
"""A hundredth of the height of a letter."""


@pytest.fixture(scope="module")
def report(tiny):
    """With every part."""
    return hostile_report(tiny)


def ranked(report, **aurocs):
    """The report with other AUROCs; scores that are not named have none to speak of."""
    scores = {
        k: dataclasses.replace(
            s,
            title=k,
            outliers={n: dataclasses.replace(d, auroc=aurocs.get(k, 0.1)) for n, d in s.outliers.items()},
        )
        for k, s in report.scores.items()
    }
    return dataclasses.replace(report, scores=scores)


def on(points, at):
    """Height of a curve at places along it."""
    return np.interp(at, points[:, 0], points[:, 1])


def told_apart_without_colours(drawn):
    """Whether each line of the legend has dashes of its own, and a colour, one of the page's."""
    colors, dashes = zip(*(style.partition(" ")[::2] for style in drawn.legend.values()), strict=True)
    assert all(color.startswith("var(--series-") for color in colors)
    return len(set(colors)) == len(set(dashes)) == len(drawn.legend)


def test_a_roc_curve_is_that_of_the_score_that_the_legend_names(report):
    """Against the set asked for; the bundle's own is the first and the thickest."""
    found = ranked(report, density=0.9, vim=0.8)
    roc = {k: (np.linspace(0.1 + i / 50, 0.9, len(report.roc_rates))).tolist() for i, k in enumerate(found.scores)}
    scores = {
        k: dataclasses.replace(
            s, outliers={**s.outliers, NAMES[2]: dataclasses.replace(s.outliers[NAMES[2]], roc=roc[k])}
        )
        for k, s in found.scores.items()
    }

    drawn = Drawn(figures.roc_curves(dataclasses.replace(found, scores=scores), NAMES[2], "roc"), "x")

    assert drawn.title == f"ROC curves against {NAMES[2]}"
    assert drawn.labels == {"x": "inliers flagged (log scale)", "y": "outliers caught"}
    rates = np.array(report.roc_rates)
    shown = rates >= 1 / report.inlier_rows
    for name in drawn.legend:
        x, y = drawn.line(name).T
        expected = np.array(roc[name])[shown]
        np.testing.assert_allclose(np.interp(np.log(rates[shown]), np.log(x), y), expected, **NEAR)
    first, *others = drawn.legend
    assert first == "softkin"
    assert all(drawn.width(first) > drawn.width(other) for other in others)
    assert drawn.styles()[-1] == drawn.legend[first]  # on top of the others
    assert told_apart_without_colours(drawn)


@pytest.mark.parametrize(
    ("aurocs", "shown"),
    [
        (
            {"vim": 0.9, "energy": 0.8, "gen": 0.7, "react": 0.6, "fdbd": 0.5},
            ["softkin", "vim", "energy", "gen", "react", "max_softmax"],
        ),
        (
            {"vim": 0.9, "max_softmax": 0.8, "gen": 0.7, "react": 0.6, "fdbd": 0.5},
            ["softkin", "vim", "max_softmax", "gen", "react", "fdbd"],
        ),
    ],
    ids=["max softmax is bad", "max softmax is good"],
)
def test_the_best_scores_are_drawn_best_first(report, aurocs, shown):
    """The bundle's own before them, and max softmax however it does."""
    drawn = Drawn(figures.roc_curves(ranked(report, **aurocs), NAMES[2], "roc"), "x")

    assert list(drawn.legend) == shown


def test_without_max_softmax_the_best_five_others_are_drawn(report):
    """As for a detector of bare vectors."""
    found = ranked(report, vim=0.9, energy=0.8, gen=0.7, react=0.6, fdbd=0.5)
    scores = {k: s for k, s in found.scores.items() if k != "max_softmax"}

    drawn = Drawn(figures.roc_curves(dataclasses.replace(found, scores=scores), NAMES[2], "roc"), "x")

    assert list(drawn.legend) == ["softkin", "vim", "energy", "gen", "react", "fdbd"]


@pytest.mark.parametrize(("rows", "least"), [(100, 0.01), (2, 0.5), (1, 0.5), (10**6, 0.0001)])
def test_the_axis_of_false_alarms_begins_where_rows_begin_to_tell(report, rows, least):
    """One of them; with very many, at the least rate of the curves. Alpha is marked, and both axes are in percent."""
    svg = figures.roc_curves(dataclasses.replace(report, inlier_rows=rows, alpha=0.6), NAMES[2], "roc")

    drawn = Drawn(svg, "x")

    np.testing.assert_allclose(drawn.limits["x"], [least, 1], rtol=1e-3)
    assert drawn.limits["y"][0] == pytest.approx(0, abs=1e-6)
    assert 1 < drawn.limits["y"][1] < 1.1
    np.testing.assert_allclose(drawn.styled(MUTED_DOTS)[:, 0], [0.6, 0.6], rtol=1e-3)
    assert all(text.endswith("%") for text in drawn.ticks["x"])
    assert list(drawn.ticks["y"]) == ["0%", "20%", "40%", "60%", "80%", "100%"]


@pytest.mark.parametrize("least", [0.5, 0.15, 0.02])
def test_a_short_axis_has_more_ticks_all_in_percent(report, least):
    """Such as that of a calibration on few rows, which has no power of ten but its end."""
    values = dataclasses.replace(
        report.p_values, alphas=[least, 1.0], inliers_flagged=[least, 1.0], outliers_flagged={"far": [0.9, 1.0]}
    )

    drawn = Drawn(figures.flagged_by_alpha(dataclasses.replace(report, p_values=values), "alpha"), "xy")

    np.testing.assert_allclose(drawn.line("inliers"), [[least, least], [1, 1]], rtol=2e-3)
    for axis, ticks in drawn.ticks.items():
        assert len(ticks) >= 2
        assert all(text.endswith("%") for text in ticks), axis


def test_a_histogram_of_scores_shows_shares_of_each_kind(report):
    """However many rows each has; the curves stay below the legend."""
    histogram = dataclasses.replace(
        report.histogram,
        edges=[0.0, 1.0, 2.0, 4.0],
        inliers=[60, 30, 10],
        outliers={NAMES[2]: [0, 1, 3], NAMES[3]: [9, 0, 0]},
    )

    drawn = Drawn(figures.score_histogram(dataclasses.replace(report, histogram=histogram), NAMES[2], "scores"))

    assert drawn.title == f"outlier scores of inliers and of {NAMES[2]}"
    assert drawn.labels == {"x": "outlier score (first and last bar: and beyond)", "y": "share of rows"}
    assert list(drawn.legend) == ["inliers", NAMES[2]]
    assert told_apart_without_colours(drawn)
    centers = [0.5, 1.5, 3.0]
    for i, (name, shares) in enumerate({"inliers": [0.6, 0.3, 0.1], NAMES[2]: [0, 0.25, 0.75]}.items()):
        np.testing.assert_allclose(heights(drawn.line(name), centers), shares, **NEAR)
        np.testing.assert_allclose(heights(drawn.filled(f"var(--series-{i})"), centers), shares, **NEAR)
    np.testing.assert_allclose(drawn.limits["y"], [0, 1.25 * 0.75], **NEAR)
    assert all(text.endswith("%") and "." not in text for text in drawn.ticks["y"])


def test_the_histogram_of_p_values_shows_shares_beside_what_uniform_ones_have(report):
    """One over the number of bars."""
    values = dataclasses.replace(report.p_values, inlier_histogram=[10, 20, 30, 20])

    drawn = Drawn(figures.p_value_histogram(dataclasses.replace(report, p_values=values), "p"))

    assert drawn.title == "histogram of the inliers' p-values"
    assert drawn.labels == {"x": "p-value", "y": "share of inliers"}
    expected = [0.125, 0.25, 0.375, 0.25]
    np.testing.assert_allclose(heights(drawn.filled("var(--series-0)"), [0.1, 0.4, 0.6, 0.9]), expected, **NEAR)
    np.testing.assert_allclose(drawn.filled("var(--series-0)")[[1, 2, 4, 6], 0], [0, 0.25, 0.5, 0.75], **NEAR)
    np.testing.assert_allclose(drawn.line("uniform"), [[0, 0.25], [1, 0.25]], **NEAR)
    np.testing.assert_allclose(drawn.limits["x"], [0, 1], **NEAR)
    assert all(text.endswith("%") for text in drawn.ticks["y"])


def flagged(report, sets):
    """Shares flagged at three alphas, of inliers and of sets."""
    values = dataclasses.replace(
        report.p_values, alphas=[0.01, 0.1, 1.0], inliers_flagged=[0.0, 0.2, 1.0], outliers_flagged=sets
    )
    return dataclasses.replace(report, p_values=values, alpha=0.2)


def test_what_every_alpha_gives_stands_beside_what_is_promised(report):
    """None at all has no place on the axis, and is left out."""
    found = flagged(report, {"near": [0.05, 0.5, 1.0], "_far": [0.5, 0.9, 1.0]})

    drawn = Drawn(figures.flagged_by_alpha(found, "alpha"), "xy")

    assert drawn.title == "share of rows flagged at every alpha"
    assert drawn.labels == {"x": "alpha", "y": "share flagged"}
    assert list(drawn.legend) == ["as promised", "inliers", "near", " _far"]
    expected = {
        "as promised": [[0.01, 0.01], [1, 1]],
        "inliers": [[0.1, 0.2], [1, 1]],
        "near": [[0.01, 0.05], [0.1, 0.5], [1, 1]],
        " _far": [[0.01, 0.5], [0.1, 0.9], [1, 1]],
    }
    for name, points in expected.items():
        np.testing.assert_allclose(drawn.line(name), points, rtol=2e-3)
    assert all(drawn.width("inliers") > drawn.width(name) for name in drawn.legend if name != "inliers")
    np.testing.assert_allclose(drawn.styled(MUTED_DOTS)[:, 0], [0.2, 0.2], rtol=1e-3)
    np.testing.assert_allclose([*drawn.limits["x"], *drawn.limits["y"]], [0.01, 1, 0.01, 1.1], rtol=2e-3)
    assert all(text.endswith("%") for axis in drawn.ticks.values() for text in axis)


@pytest.mark.parametrize(("sets", "columns", "styles"), [(5, 1, 5), (6, 2, 5)])
def test_the_legend_of_many_sets_has_two_columns(report, sets, columns, styles):
    """So that it leaves room to the curves; the first five differ in colour and dashes, from the inliers' too."""
    found = flagged(report, {f"set {i}": [0.1, 0.5, 1.0] for i in range(sets)})

    drawn = Drawn(figures.flagged_by_alpha(found, "alpha"), "xy")

    assert drawn.columns == columns
    assert len({v for k, v in drawn.legend.items() if k.startswith("set")}) == styles
    assert drawn.legend["inliers"] not in [v for k, v in drawn.legend.items() if k != "inliers"]


BINS = (
    Bin(low=0.0, high=0.5, rows=0, mean=None, accuracy=None),
    Bin(low=0.5, high=0.8, rows=30, mean=0.7, accuracy=0.6),
    Bin(low=0.8, high=1.0, rows=10, mean=0.9, accuracy=1.0),
)


@pytest.mark.parametrize("what", ["probability of the predicted class", "credibility"])
def test_a_diagram_shows_accuracy_and_share_of_rows_of_every_bin(report, what):
    """An empty bin has neither; only probabilities are held against the diagonal."""
    probability = what != "credibility"
    classifier = dataclasses.replace(report.classifier, reliability=BINS if probability else ())
    found = dataclasses.replace(report, classifier=classifier, credibility=() if probability else BINS)

    drawn = Drawn((figures.reliability if probability else figures.credibility)(found, "diagram"))

    assert drawn.title == f"accuracy by {what}"
    assert drawn.labels["x"] == what
    assert set(drawn.legend) == {"accuracy", "share of rows"} | ({"perfectly calibrated"} if probability else set())
    centers = [0.25, 0.65, 0.9]
    np.testing.assert_allclose(heights(drawn.filled("var(--series-0)"), centers), [0, 0.6, 1], **NEAR)
    np.testing.assert_allclose(heights(drawn.line("share of rows"), centers), [0, 0.75, 0.25], **NEAR)
    np.testing.assert_allclose(drawn.dots("accuracy"), [[0.7, 0.6], [0.9, 1]], **NEAR)
    if probability:
        np.testing.assert_allclose(drawn.line("perfectly calibrated"), [[0, 0], [1, 1]], **NEAR)
    np.testing.assert_allclose([*drawn.limits["x"], *drawn.limits["y"]], [0, 1, 0, 1.05], **NEAR)
    assert all(text.endswith("%") and "." not in text for text in drawn.ticks["y"])


@pytest.mark.parametrize("accuracy", [1.0, 0.0], ids=["high", "low"])
def test_the_legend_of_a_reliability_diagram_hides_no_accuracy(report, accuracy):
    """That of a few rows of low probability may lie anywhere."""
    bins = [
        Bin(low=i / 10, high=(i + 1) / 10, rows=9, mean=i / 10 + 0.05, accuracy=accuracy if i < 4 else i / 10)
        for i in range(10)
    ]
    found = dataclasses.replace(report, classifier=dataclasses.replace(report.classifier, reliability=tuple(bins)))

    drawn = Drawn(figures.reliability(found, "diagram"))

    dots = drawn.dots("accuracy")
    assert len(dots) == 10
    assert not ((dots > drawn.legend_box[0]) & (dots < drawn.legend_box[1])).all(axis=1).any()


def test_corrupted_inliers_are_drawn_by_severity_with_the_interval_of_what_is_flagged(report):
    """Of the kind asked for; each severity with its level below it."""
    levels = [x for x in report.corruptions.levels if x.kind == "blur"]

    drawn = Drawn(figures.corruption(report, "blur", "blur"))

    assert drawn.title == "inliers flagged by severity of blur"
    assert drawn.labels["x"] == "severity of blur"
    assert list(drawn.ticks["x"]) == [f"{x.severity}\n{x.level:g}" for x in levels]
    lines = {
        "flagged": [x.flagged.value for x in levels],
        "accuracy": [x.accuracy for x in levels],
        "of those accepted": [x.accuracy_of_accepted for x in levels[:-1]],  # at the last all are flagged
    }
    assert list(drawn.legend) == list(lines)
    assert told_apart_without_colours(drawn)
    for name, values in lines.items():
        expected = np.stack([np.arange(len(values)), values], axis=1)
        np.testing.assert_allclose(drawn.dots(name), expected, **NEAR)
        points = drawn.line(name)
        np.testing.assert_allclose(on(points, np.arange(len(values))), values, **NEAR)
        assert points[-1, 0] == pytest.approx(len(values) - 1, abs=2e-3)
    band = drawn.filled("var(--series-0)")
    for x in levels:
        at = band[np.abs(band[:, 0] - x.severity) < 1e-3, 1]
        np.testing.assert_allclose([at.min(), at.max()], [x.flagged.low, x.flagged.high], **NEAR)
    np.testing.assert_allclose(drawn.limits["y"], [0, 1.02], **NEAR)
    assert all(text.endswith("%") and "." not in text for text in drawn.ticks["y"])


def test_without_labels_corrupted_inliers_have_no_accuracy(report):
    """Neither a line nor an entry of the legend."""
    levels = [dataclasses.replace(x, accuracy=None, accuracy_of_accepted=None) for x in report.corruptions.levels]
    found = dataclasses.replace(report, corruptions=dataclasses.replace(report.corruptions, levels=levels))

    assert list(Drawn(figures.corruption(found, "noise", "noise")).legend) == ["flagged"]


def test_a_name_of_34_letters_is_whole_and_a_longer_one_is_cut(report):
    """It would push the curves out of sight."""
    found = ranked(report)
    scores = {
        "softkin": dataclasses.replace(found.scores["softkin"], title="a" * 34),
        "max_softmax": dataclasses.replace(found.scores["max_softmax"], title="b" * 35),
    }

    drawn = Drawn(figures.roc_curves(dataclasses.replace(found, scores=scores), NAMES[2], "roc"), "x")

    assert list(drawn.legend) == ["a" * 34, "b" * 33 + "…"]
