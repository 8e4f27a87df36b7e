"""What `softkin-train run` and `evaluate` print of a report, and `ablate` of an ablation."""

from __future__ import annotations

import dataclasses
import re

import pytest

from hostile_report import hostile_report
from softkin_training import ablation_table
from softkin_training import report_tables as tables
from softkin_training.ablation_plan import FAR, Cell
from softkin_training.data import HELD_OUT_SETS
from softkin_training.report_terminal import print_ablation, print_summary

pytestmark = pytest.mark.training

WIDTH = 80


@pytest.fixture(scope="module")
def report(tiny):
    """With names that break careless terminals."""
    return hostile_report(tiny)


@pytest.fixture
def printed(capsys, monkeypatch):
    """Prints a report on a narrow terminal; its lines, or those of one of its tables."""
    monkeypatch.setenv("COLUMNS", str(WIDTH))

    def lines(report, table=None):
        print_summary(report)
        found = capsys.readouterr().out.splitlines()
        if table is None:
            return found
        starts = [i for i, line in enumerate(found) if line.startswith("┏")]
        ends = [i for i, line in enumerate(found) if line.startswith("└")]
        return found[starts[table] : ends[table]]

    return lines


def cells(lines):
    """Rows of the table: a name folded over several lines counts as its first."""
    rows = [[c.strip() for c in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    return [row for row in rows if any(row[1:])]


def test_the_summary_fits_a_terminal_however_many_outlier_sets_there_are(report, printed):
    """A column for each set would leave each a few letters: the scores have means, and the sets rows of their own."""
    one = next(iter(report.scores["softkin"].outliers.values()))
    many = {f"set {i}": one for i in range(9)}
    scores = {k: dataclasses.replace(s, outliers=many) for k, s in report.scores.items()}

    lines = printed(dataclasses.replace(report, scores=scores, near=("set 0",)))

    assert max(map(len, lines)) <= WIDTH
    at = next(i for i, line in enumerate(lines) if line.startswith("└"))
    assert all(len(row) == 6 and len(row[1]) == len("0.1234") for row in cells(lines[:at]))
    assert [row[0] for row in cells(lines[at:])] == ["set 0 (near)", *(f"set {i}" for i in range(1, 9))]
    assert any("Mean over 9 outlier sets" in line for line in lines)


def heads(lines):
    """Of a table's columns."""
    found = [line.strip("┃").split("┃") for line in lines if line.startswith("┃")]
    return [" ".join(" ".join(words).split()) for words in zip(*found, strict=True)]


def test_the_figures_are_those_of_the_report(report, printed):
    """AUROC, false alarms and share caught, to four digits; the promise and the notes stand before them."""
    plain = dataclasses.replace(report, near=(), notes=("Mind the gap.",))

    means, lines = printed(plain, 0), printed(plain)

    wanted = [(s.mean_auroc, s.false_alarms and s.false_alarms.value, s.mean_caught) for s in plain.scores.values()]
    assert [row[1:] for row in cells(means)] == [list(map(tables.number, row)) for row in wanted]
    assert "* Mind the gap." in lines
    assert heads(means) == ["score", "mean AUROC", "false alarms", "mean caught"]
    text = " ".join(" ".join(lines).split())
    assert f"Promised: at alpha = {plain.alpha:g} at most {plain.alpha:g} of inliers are flagged" in text


def with_sets(report, aurocs, **changes):
    """A report of outlier sets of these AUROCs by the bundle's own score, which the other scores do not share."""
    one = dataclasses.replace(next(iter(report.scores["softkin"].outliers.values())), **changes)
    own = {name: dataclasses.replace(one, auroc=auroc) for name, auroc in aurocs.items()}
    scores = {k: dataclasses.replace(s, outliers=dict.fromkeys(aurocs, one)) for k, s in report.scores.items()}
    scores["softkin"] = dataclasses.replace(report.scores["softkin"], outliers=own)
    return dataclasses.replace(report, scores=scores, near=())


def test_each_outlier_set_has_a_row_with_what_the_own_score_gives_on_it(report, printed):
    """As they were given: which set is hard, and of how many rows one knows so. Long numbers are not folded."""
    one = next(iter(report.scores["softkin"].outliers.values()))

    lines = printed(with_sets(report, {"b": 0.75, "a": 0.5, "[c]": 1.0}, rows=1234567), 1)

    caught = tables.number(one.caught.value)
    assert heads(lines) == ["outlier set", "rows", "AUROC", "caught"]
    assert cells(lines) == [
        ["b", "1234567", "0.7500", caught],
        ["a", "1234567", "0.5000", caught],
        ["[c]", "1234567", "1.0000", caught],
    ]


def test_of_many_outlier_sets_the_hardest_are_shown_and_the_title_says_so(report, printed):
    """Hundreds of rows would push the other table off the screen."""
    many = with_sets(report, {f"set {i}": 1 - i / 100 for i in range(50)})
    few = with_sets(report, {f"set {i}": 1 - i / 100 for i in range(20)})

    assert [row[0] for row in cells(printed(many, 1))] == [f"set {i}" for i in range(49, 29, -1)]
    assert [row[0] for row in cells(printed(few, 1))] == [f"set {i}" for i in range(20)]
    own = many.scores["softkin"].title
    text = " ".join(" ".join(printed(many)).split())
    assert f"{own}, by outlier set: the 20 of 50 with the lowest AUROC" in text


def test_of_one_outlier_set_there_is_one_table(report, printed):
    """That of all scores is about this set already."""
    lines = printed(with_sets(report, {"alone": 0.75}))

    assert sum(line.startswith("┏") for line in lines) == 1


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


def test_paragraphs_and_notes_stand_apart_and_the_table_says_what_it_is_a_mean_over(report, printed):
    """The first names detector and version."""
    lines = printed(dataclasses.replace(report, near=(), notes=("One.", "Two.")))

    assert lines[0].startswith("tiny 1: 500 inliers, 300 calibration rows, alpha = 0.05, accuracy ")
    at = lines.index("* One.")
    assert lines[at - 1 : at + 4] == ["", "* One.", "", "* Two.", ""]
    assert lines[at + 4].strip() == "Mean over 4 outlier sets"


def test_long_names_take_no_room_from_the_figures(report, printed):
    """They go on in the next line; what looks like an emoji's name is none."""
    titled = {k: dataclasses.replace(s, title=f"{':bug: ' * 30}{k}") for k, s in report.scores.items()}

    rows = cells(printed(dataclasses.replace(report, scores=titled, near=()), 0))

    assert len(rows) == len(titled)
    assert all(re.fullmatch(r"\d\.\d{4}", row[1]) for row in rows)
    assert rows[0][0].startswith(":bug: :bug:")


def test_a_name_that_is_one_long_word_is_folded_and_never_cut(report, printed):
    """It may differ from another at its end alone; the title says which set it is about, brackets and all."""
    titled = {k: dataclasses.replace(s, title="x" * 150 + k) for k, s in report.scores.items()}
    own = {k: dataclasses.replace(s, outliers={"[b]one": next(iter(s.outliers.values()))}) for k, s in titled.items()}

    lines = printed(dataclasses.replace(report, scores=own, near=()))

    names = "".join(line.strip("│").split("│")[0].strip() for line in lines if line.startswith("│"))
    assert names == "".join("x" * 150 + k for k in own)
    assert all(re.fullmatch(r"\d\.\d{4}", row[1]) for row in cells(lines))
    assert any(line.strip() == "Against [b]one" for line in lines)


def in_bold(text):
    """Figures that a terminal shows in bold."""
    return re.findall(r"\x1b\[1m(?:\x1b\[0m)?([\d.]+)", text)


def test_the_best_of_a_column_is_bold_in_a_terminal_with_colours(report, capsys, monkeypatch):
    """Nothing else is coloured."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    plain = dataclasses.replace(report, near=())

    print_summary(plain)

    shown = capsys.readouterr().out
    bold = in_bold(shown)
    figures = [[s.mean_auroc, s.mean_caught] for s in plain.scores.values()]
    highest = [tables.number(max(column)) for column in zip(*figures, strict=True)]
    assert set(bold) == set(highest)
    assert len(bold) == sum(tables.number(x) == best for row in figures for x, best in zip(row, highest, strict=True))


def cell(train, seed, auroc, alarms=0.05, *, family=FAR):
    """Of an ablation with one score and one outlier set."""
    name = "elsewhere" if family == FAR else HELD_OUT_SETS[0]
    sets = {name: {"auroc": auroc, "caught": {"value": auroc / 2}}}
    score = {"title": "own", "false_alarms": {"value": alarms}, "outliers": sets}
    report = {"accuracy": auroc, "scores": {"softkin": score}}
    return Cell(family=family, train=train, detect="d", seed=seed, report=report)


def test_an_ablation_shows_means_and_differences_to_its_first_variant(capsys, monkeypatch):
    """With the sign of the difference, and p where there are seeds enough; false alarms have no best."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    made = [cell("a", s, 0.5 + s / 10, 0.04) for s in range(3)] + [cell("[b]:x:", s, 0.7 + s / 20) for s in range(3)]
    table = ablation_table.summarise(made)

    print_ablation(table)

    shown = capsys.readouterr().out
    text = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert text.splitlines()[0].strip() == "Accuracy, and its difference to a"
    accuracy, means = (cells(part.splitlines()) for part in text.split("Means over seeds"))
    p = table["accuracy"]["[b]:x:"]["paired"]["p"]
    assert accuracy == [["a", "0.6000", "", ""], ["[b]:x:", "0.7500", "+0.1500", f"{p:.2g}"]]
    assert means == [
        ["softkin: d", "a", "0.6000", "0.3000", "0.0400"],
        ["softkin: d", "[b]:x:", "0.7500", "0.3750", "0.0500"],
    ]
    heads = [line.strip("┃").split("┃") for line in text.splitlines() if line.startswith("┃")]
    assert [[head.strip() for head in row] for row in heads] == [
        ["network", "accuracy", "difference", "p"],
        ["", "", "far", "far", "false"],
        ["score", "network", "auroc", "caught", "alarms"],
    ]
    assert in_bold(shown) == ["0.7500", "0.3750"]


def test_what_one_variant_alone_has_is_left_empty_in_the_rows_of_the_others(capsys, monkeypatch):
    """As while an ablation is under way."""
    monkeypatch.setenv("COLUMNS", "100")

    print_ablation(ablation_table.summarise([cell("a", 0, 0.5), cell("b", 0, 0.5), cell("b", 0, 0.7, family="pair")]))

    _, means = (cells(part.splitlines()) for part in capsys.readouterr().out.split("Means over seeds"))
    assert means == [
        ["softkin: d", "a", "0.5000", "0.2500", "", "", "0.0500"],
        ["softkin: d", "b", "0.5000", "0.2500", "0.7000", "0.3500", "0.0500"],
    ]
