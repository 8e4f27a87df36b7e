"""What `softkin-train run` and `evaluate` print of a report."""

from __future__ import annotations

import dataclasses

import pytest

from hostile_report import hostile_report
from softkin_training import report_tables as tables
from softkin_training.report_terminal import print_summary

pytestmark = pytest.mark.training

WIDTH = 80


@pytest.fixture(scope="module")
def report(tiny):
    """With names that break careless terminals."""
    return hostile_report(tiny)


@pytest.fixture
def printed(capsys, monkeypatch):
    """Prints a report on a narrow terminal; its lines."""
    monkeypatch.setenv("COLUMNS", str(WIDTH))

    def lines(report):
        print_summary(report)
        return capsys.readouterr().out.splitlines()

    return lines


def cells(lines):
    """Rows of the table: a name folded over several lines counts as its first."""
    rows = [[c.strip() for c in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    return [row for row in rows if any(row[1:])]


def test_the_summary_fits_a_terminal_however_many_outlier_sets_there_are(report, printed):
    """Means alone: a column for each set would leave each a few letters."""
    one = next(iter(report.scores["softkin"].outliers.values()))
    many = {f"set {i}": one for i in range(9)}
    scores = {k: dataclasses.replace(s, outliers=many) for k, s in report.scores.items()}

    lines = printed(dataclasses.replace(report, scores=scores, near=("set 0",)))

    assert max(map(len, lines)) <= WIDTH
    assert all(len(row) == 6 and len(row[1]) == len("0.1234") for row in cells(lines))
    assert any("Mean over 9 outlier sets" in line for line in lines)


def test_the_figures_are_those_of_the_report(report, printed):
    """AUROC, false alarms and share caught, to four digits; the promise and the notes stand before them."""
    plain = dataclasses.replace(report, near=(), notes=("Mind the gap.",))

    lines = printed(plain)

    wanted = [(s.mean_auroc, s.false_alarms and s.false_alarms.value, s.mean_caught) for s in plain.scores.values()]
    assert [row[1:] for row in cells(lines)] == [list(map(tables.number, row)) for row in wanted]
    assert "* Mind the gap." in lines
    text = " ".join(" ".join(lines).split())
    assert f"Promised: at alpha = {plain.alpha:g} at most {plain.alpha:g} of inliers are flagged" in text


def test_names_neither_move_the_cursor_nor_colour_the_terminal(report, printed):
    """They come from users."""
    hostile = dataclasses.replace(report, detector="\x1b[2J[bold]", near=(), notes=("\x07[red]note",))
    titled = {k: dataclasses.replace(s, title=f"\x1b[31m[b]{k}") for k, s in report.scores.items()}

    text = "\n".join(printed(dataclasses.replace(hostile, scores=titled)))

    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\\x1b[2J[bold]" in text
    assert "\\x07[red]note" in text
    assert "\\x1b[31m[b]softkin" in text
