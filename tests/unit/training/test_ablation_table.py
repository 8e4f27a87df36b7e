"""The table of an ablation: which figures it takes from each cell, and how it shows them."""

from __future__ import annotations

import json

import pytest

from softkin_training.ablation_plan import FAR, Cell
from softkin_training.ablation_table import markdown, summarise, write_table
from softkin_training.data import HELD_OUT_SETS

pytestmark = pytest.mark.training

SETS = {FAR: ("a", "b")}
"""Outlier sets by family; the others have one of classes held out, and one from elsewhere."""


def score(title, family, auroc, caught=0.5, alarms=0.05):
    """Of a report; the second outlier set is seen worse by .1."""
    near, other = SETS.get(family, (HELD_OUT_SETS[0], "elsewhere"))
    return {
        "title": title,
        "false_alarms": None if alarms is None else {"value": alarms},
        "outliers": {
            near: {"auroc": auroc, "caught": None if caught is None else {"value": caught}},
            other: {"auroc": auroc - 0.1, "caught": {"value": 0.25}},
        },
    }


def cell(train, seed, scores, *, detect="d", family=FAR, accuracy=0.75):
    """Of scores by short name, each what `score` takes after the family."""
    report = {"accuracy": accuracy, "scores": {n: score(n.upper(), family, *values) for n, values in scores.items()}}
    return Cell(family=family, train=train, detect=detect, seed=seed, report=report)


def test_the_page_shows_every_variant_and_score_with_the_best_of_each_column_in_bold(tmp_path):
    """As far as its digits tell; a near column is empty where no near family is done. The JSON has the same."""
    cells = [
        cell("plain", 0, {"softkin": [0.8], "knn": [0.9]}),
        cell("plain", 1, {"softkin": [0.9], "knn": [0.9]}, accuracy=0.85),
        cell("en|tangled", 0, {"softkin": [0.85, 0.75, 0.0625]}),
        cell("en|tangled", 1, {"softkin": [0.95, 0.75, 0.0625]}, accuracy=0.95),
        cell("en|tangled", 0, {"softkin": [0.7]}, family="pair"),
    ]

    text = write_table(cells, tmp_path)

    assert text.splitlines() == [
        "# Ablation",
        "",
        "| network | accuracy | paired difference |",
        "|---|---|---|",
        "| plain | 0.8000 +- 0.0707 |  |",
        "| en\\|tangled | 0.8500 +- 0.1414 | +0.0500 (not tested) |",
        "",
        "| score | network | far auroc | far caught | near auroc | near caught | false alarms |",
        "|---|---|---|---|---|---|---|",
        "| softkin: d | plain | 0.8000 +- 0.0707 | 0.3750 +- 0.0000 |  |  | 0.0500 +- 0.0000 |",
        "| softkin: d | en\\|tangled | **0.8500 +- 0.0707** | **0.5000 +- 0.0000** | **0.7000 +- 0.0000** | "
        "**0.5000 +- 0.0000** | 0.0625 +- 0.0000 |",
        "| KNN | plain | **0.8500 +- 0.0000** | 0.3750 +- 0.0000 |  |  | 0.0500 +- 0.0000 |",
        "",
        "Paired differences to plain are in ablation.json.",
    ]
    written = (tmp_path / "ablation.json").read_text()
    assert json.loads(written) == summarise(cells)
    assert written.startswith('{\n "baseline": "plain",\n')


def test_other_scores_stand_once_as_the_first_detector_has_them():
    """They are the same for all detectors, which differ in their own score alone."""
    cells = [
        cell("plain", 0, {"softkin": [0.8], "knn": [0.9]}),
        cell("plain", 0, {"softkin": [0.7], "knn": [0.1], "vim": [0.1]}, detect="e"),
    ]

    rows = summarise(cells)["rows"]

    assert [(row["score"], row["far_auroc"]["mean"]) for row in rows] == [
        ("softkin: d", pytest.approx(0.75)),
        ("KNN", pytest.approx(0.85)),
        ("softkin: e", pytest.approx(0.65)),
    ]


def test_figures_that_a_score_lacks_against_one_set_are_no_means_of_the_others():
    """Nor is a score without a calibration given false alarms."""
    cells = [cell("plain", 0, {"softkin": [0.8, None, None], "knn": [0.9]})]

    own, other = summarise(cells)["rows"]

    assert set(own) == {"train", "score", "far_auroc"}
    assert set(other) == {"train", "score", "far_auroc", "far_caught", "false_alarms"}


def test_near_figures_are_means_over_families_then_seeds_and_false_alarms_are_of_known_classes():
    """A network that lacks classes has other inliers."""
    cells = [cell("plain", 0, {"softkin": [0.8]})]
    cells += [
        cell("plain", seed, {"softkin": [auroc, 0.5, 0.5]}, family=family, accuracy=0.1)
        for family, seed, auroc in (("p", 0, 0.5), ("q", 0, 0.7), ("p", 1, 0.8), ("q", 1, 0.8))
    ]

    table = summarise(cells)

    [row] = table["rows"]
    assert row["near_auroc"] == {"mean": pytest.approx(0.7), "sd": pytest.approx(0.02**0.5), "seeds": 2}
    assert row["false_alarms"] == {"mean": 0.05, "sd": 0.0, "seeds": 1}
    assert table["accuracy"] == {"plain": {"mean": 0.75, "sd": 0.0, "seeds": 1}}


def test_differences_are_paired_by_seed_with_a_test_from_three_seeds_on():
    """Seeds that only one of both has are left out; a score that the first variant lacks is compared with nothing."""
    plain = [cell("plain", seed, {"softkin": [0.5 + seed / 100, 0.5, seed / 16]}, accuracy=0.5) for seed in range(4)]
    other = [
        cell("other", seed, {"softkin": [auroc, 0.5, seed / 16], "vim": [0.9]}, accuracy=0.5 + auroc)
        for seed, auroc in ((1, 0.41), (2, 0.44), (3, 0.43))
    ]

    table = summarise([*plain, *other])

    first, second, vim = table["rows"]
    assert "paired" not in first
    assert "paired" not in vim
    # Differences -.10, -.08, -.10: t = -14 on 2 degrees of freedom.
    expected = {"difference": pytest.approx(-0.28 / 3), "p": pytest.approx(0.0050632, rel=1e-4)}
    assert second["paired"]["far_auroc"] == expected
    assert second["paired"]["false_alarms"] == {"difference": 0.0, "p": None}
    assert table["accuracy"]["other"]["paired"]["difference"] == pytest.approx(0.42667, rel=1e-4)
    assert "| other | 0.9267 +- 0.0153 | +0.4267 (p = 0.00043) |" in markdown(table)
    two = summarise([*plain, *other[:2]])["rows"][1]["paired"]["far_auroc"]
    assert two == {"difference": pytest.approx(-0.09), "p": None}
