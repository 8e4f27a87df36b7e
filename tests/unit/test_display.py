"""What people read about guarantees and drift."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from softkin import display, score_display
from softkin.descriptions import DriftInfo, detector_to_proto, proto_to_detector_info
from softkin.drift import DriftReport
from softkin.scores import ErrorBudget
from softkin.verdicts import GUARANTEES
from standin import StandIn, manifest

BUDGET = ErrorBudget(
    detector="d",
    version="1",
    digest="x",
    device="cpu",
    guarantee="marginal",
    alpha=0.05,
    confidence=0.95,
    p_value_threshold=0.05,
    false_alarm_bound=0.0721,
    fewest_selectable=None,
    calibration_size=300,
    smallest_p_value=1 / 301,
    smoothed=False,
)
PROMISES = {
    "marginal": (
        {},
        "inliers alone would give about 5.00%, at most 7.21% with this calibration set, at confidence 0.95",
    ),
    "certified": (
        {"false_alarm_bound": 0.0487},
        "inliers alone give at most 4.87% with this calibration set, at confidence 0.95 (certified at alpha 0.05)",
    ),
    "class_conditional": (
        {"confidence": 0.9},
        "inliers alone would give about 5.00% in every predicted class, at most 7.21% with this calibration set, at "
        "confidence 0.9",
    ),
    "false_discovery_rate": (
        {"false_alarm_bound": None, "fewest_selectable": 7},
        "of the rows flagged at most 5.00% are inliers, in expectation; 7 of the rows must have the smallest p-value "
        "before any is flagged",
    ),
    "false_discovery_rate, smoothed": (
        {"guarantee": "false_discovery_rate", "false_alarm_bound": None, "smoothed": True},
        "of the rows flagged at most 5.00% are inliers, in expectation",
    ),
}
REPORT = DriftReport(
    rows=12_345,
    level=0.001,
    log10_martingale=-0.5,
    max_log10_martingale=1.25,
    alarm_row=0,
    cusum=3.21,
    window_rows=10_000,
    flag_rate=0.0512,
    alpha=0.05,
    histogram=np.array([8, 4, 2, 1, 0] * 4),
)


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """A terminal in which no line is folded."""
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize("case", PROMISES)
def test_the_line_under_a_table_says_what_the_guarantee_promises(case):
    """Each in its own words; never an alpha where the promise is another."""
    changes, text = PROMISES[case]

    assert score_display.promise(dataclasses.replace(BUDGET, **{"guarantee": case, **changes})) == text


def test_no_guarantee_is_without_words():
    """Whoever adds one has to say what it promises."""
    assert set(GUARANTEES) <= PROMISES.keys()


def drift_rows(capsys, **changes):
    """The printed table as pairs of key and value."""
    report = dataclasses.replace(REPORT, **changes)
    display.print_drift(DriftInfo(detector="d[1]", version="2", digest="x", report=report), as_json=False)
    lines = [line.strip("│").split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    return {key.strip(): value.strip() for key, value in lines}


def test_a_drift_report_is_readable(capsys):
    """Every figure with what it means; names are shown as they are."""
    assert drift_rows(capsys) == {
        "detector": "d[1] 2",
        "rows watched": "12345",
        "drift alarm": "no (chance of one, ever, while nothing drifts: at most 0.001)",
        "evidence": "10^-0.50, highest 10^1.25; alarm at 1000",
        "recent evidence": "3.2 nats (CUSUM, no guarantee on false alarms)",
        "recent flag rate": "5.12% of 10000 rows, alpha is 0.05",
        "recent p-values": "█▄▂▁ █▄▂▁ █▄▂▁ █▄▂▁   0 to 1, level without drift",
    }


def test_an_alarm_says_when_it_was(capsys):
    """The row at which the evidence first reached the level."""
    found = drift_rows(capsys, alarm_row=77, max_log10_martingale=3.5)

    assert found["drift alarm"].startswith("yes, at row 77 (")


@pytest.mark.parametrize("alarm_row", [0, 77])
def test_an_alarm_comes_with_what_to_do_and_no_alarm_without(capsys, alarm_row):
    """Below the table: repeats first, which are no drift; then the rows themselves, and the remedy."""
    report = dataclasses.replace(REPORT, alarm_row=alarm_row)

    display.print_drift(DriftInfo(detector="d", version="2", digest="x", report=report), as_json=False)

    below = capsys.readouterr().out.rpartition("┘\n")[2]
    assert below == (
        "what to do: rule out repeats (retries, frames of a video), which look like drift; see in what rows are "
        "strange (softkin score --neighbors 5); if they are fit for the model, recalibrate on unselected ones "
        "(softkin-train recalibrate)\n"
    ) * (alarm_row > 0)


def test_a_watch_that_has_seen_nothing_can_be_shown(capsys):
    """No rows, no bars."""
    found = drift_rows(capsys, rows=0, window_rows=0, flag_rate=0.0, histogram=np.zeros(20, np.int64))

    assert found["rows watched"] == "0"
    assert found["recent p-values"] == "0 to 1, level without drift"


def test_a_status_has_a_line_for_every_version(capsys):
    """Each figure under its head, however long a name is; `-` for what there is none of."""
    infos = []
    for version, labels in (("2026-11-28", ("stable", "canary")), ("1", ())):
        message = detector_to_proto(StandIn("tiny", version), 0.05, "marginal", 0.95, labels)
        infos.append(proto_to_detector_info(message))
    none_yet = dataclasses.replace(REPORT, rows=0, window_rows=0, flag_rate=0.0, alpha=0.01)
    reports = (dataclasses.replace(REPORT, alarm_row=77), none_yet)
    drifts = [DriftInfo(detector="tiny", version="", digest="", report=report) for report in reports]

    display.print_status(list(zip(infos, drifts, strict=True)), as_json=False)

    first, second = (info.digest[:12] for info in infos)
    assert capsys.readouterr().out.splitlines() == [
        "detector  version     labels         digest        device  rows   flagged  alpha  drift",
        f"tiny      2026-11-28  stable,canary  {first}  cpu     12345  5.12%    0.05   row 77",
        f"tiny      1           -              {second}  cpu     0      -        0.01   no",
    ]


def test_a_manifest_shows_on_what_class_p_values_rest_where_other_rows_calibrate(capsys):
    """Rows without labels say nothing of classes: those of before still do."""
    said = {"class_p_values": {"labelled_rows": 300, "kept_from_version": "1\x1b[2J"}}
    display.print_manifest(dataclasses.replace(manifest(), provenance=said), "ab" * 32, as_json=False)

    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "they rest on 300 labelled rows of version 1\\x1b[2J, and promise nothing of inliers now" in out
