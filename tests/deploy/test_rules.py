"""The alert rules: valid, documented, and each fires when it should and at no other time."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml

DETECTOR = 'job="softkin",instance="a:9090",detector="d",version="1"'
ANSWERED = 'softkin_request_rows_count{job="softkin",instance="a:9090"}'
REJECTED = 'softkin_rejected_total{job="softkin",instance="a:9090",reason="%s"}'
UP = 'up{job="softkin",instance="a:9090"}'
READY = 'softkin_ready{job="softkin",instance="a:9090"}'
INFO = f'softkin_detector_info{{{DETECTOR},digest="f00d",device="cpu"}}'
ALPHA = f"softkin_alpha{{{DETECTOR}}}"
DRIFT_ALARM = f"softkin_drift_alarm{{{DETECTOR}}}"
UNSAVED = 'softkin_unsaved_drift_states{job="softkin",instance="a:9090"}'
FALLBACK = 'softkin_device_fallback{job="softkin",instance="a:9090"}'
EXPIRY = 'softkin_tls_certificate_expiry_seconds{job="softkin",instance="a:9090"}'
FAILED_RELOADS = 'softkin_reloads_total{job="softkin",instance="a:9090",result="failed"}'
LOADED = 'softkin_reloads_total{job="softkin",instance="a:9090",result="loaded"}'
DISAGREEMENT = f"softkin_shadow_disagreement{{{DETECTOR}}}"
SHADOW_ROWS = f'softkin_shadow_rows_total{{{DETECTOR},result="%s"}}'
COMPARED = f"softkin_shadow_compared_rows{{{DETECTOR}}}"
INLIERS = f'softkin_rows_total{{{DETECTOR},verdict="inlier"}}'
OUTLIERS = f'softkin_rows_total{{{DETECTOR},verdict="outlier"}}'
P_VALUES = f"softkin_p_value_count{{{DETECTOR}}}"
SMALL_P_VALUES = f'softkin_p_value_bucket{{{DETECTOR},le="0.2"}}'
DAY = 86400  # the clock of a test begins at 0

# 1,000 rows in 20 requests a minute, flagged at alpha, no errors.
HEALTHY = {
    UP: "1x600",
    READY: "1x600",
    INFO: "1x600",
    ALPHA: "0.05x600",
    FALLBACK: "0x600",
    DRIFT_ALARM: "0x600",
    UNSAVED: "0x600",
    EXPIRY: f"{30 * DAY}x600",
    FAILED_RELOADS: "0x600",
    LOADED: "0x600",
    DISAGREEMENT: "0.005x600",
    COMPARED: "0+200x600",
    SHADOW_ROWS % "agree": "0+199x600",
    SHADOW_ROWS % "disagree": "0+1x600",
    INLIERS: "0+950x600",
    OUTLIERS: "0+50x600",
    P_VALUES: "0+1000x600",
    SMALL_P_VALUES: "0+200x600",
    ANSWERED: "0+20x600",
    **{REJECTED % reason: "0x600" for reason in ("internal", "unavailable", "queue_full", "deadline", "invalid")},
    REJECTED % "unsupported": "0x600",
}

# What differs from a healthy server, after how many minutes, what fires.
CASES = {
    "healthy": ({}, 500, []),
    "the process is gone": ({UP: "1x10 0x590", READY: "1x10 stale", INFO: "1x10 stale"}, 13, ["SoftkinDown"]),
    "no target at all": ({UP: "", READY: "", INFO: ""}, 5, ["SoftkinDown"]),
    "one missed scrape": ({UP: "1x10 0 1x589"}, 20, []),
    "loading for five minutes": ({READY: "0x5 1x595", INFO: "_x5 1x595"}, 20, []),
    "loading for ever": ({READY: "0x600", INFO: ""}, 15, ["SoftkinNotReady"]),
    "loading the second bundle for ever": ({READY: "0x600"}, 15, ["SoftkinNotReady"]),
    "loading for ever, and restarted every six minutes": (
        {READY: "0x4 stale _x1 " * 20, INFO: "", UP: "1x4 0x1 " * 20},
        25,
        ["SoftkinNotReady"],
    ),
    "a reload that leaves nothing loaded": ({INFO: "1x10 stale"}, 25, ["SoftkinNotReady"]),
    "one request in twenty fails inside": ({REJECTED % "internal": "0+1x600"}, 20, ["SoftkinErrors"]),
    "the device fails": ({REJECTED % "unavailable": "0+19x600"}, 20, ["SoftkinErrors"]),
    "a single internal error": ({REJECTED % "internal": "0x10 1x590"}, 15, []),
    "nothing but errors": ({REJECTED % "internal": "0+1x600", ANSWERED: "0x600"}, 20, ["SoftkinErrors"]),
    "callers send nonsense": ({REJECTED % "invalid": "0+19x600"}, 20, []),
    "callers ask for streams where there are none": ({REJECTED % "unsupported": "0+19x600"}, 20, []),
    "the queue is full": ({REJECTED % "queue_full": "0+5x600"}, 20, ["SoftkinOverloaded"]),
    "deadlines pass in the queue": ({REJECTED % "deadline": "0+5x600"}, 20, ["SoftkinOverloaded"]),
    "the GPU is not used": ({FALLBACK: "1x600"}, 20, ["SoftkinDeviceFallback"]),
    "the certificate expires in six days": ({EXPIRY: f"{6 * DAY}x600"}, 20, ["SoftkinCertificateExpires"]),
    "the certificate has been renewed": ({EXPIRY: f"{6 * DAY}x15 {90 * DAY}x585"}, 20, []),
    "no TLS": ({EXPIRY: ""}, 20, []),
    "a bundle does not load": ({FAILED_RELOADS: "0x10 1x590"}, 15, ["SoftkinReloadFailed"]),
    "half an hour after it": ({FAILED_RELOADS: "0x10 1x590"}, 40, []),
    "a bundle is loaded": ({LOADED: "0x10 1x590"}, 15, []),
    "the shadow disagrees on 10%": ({DISAGREEMENT: "0.1x600"}, 60, ["SoftkinShadowDisagrees"]),
    "on 10% of few rows": ({DISAGREEMENT: "0.1x600", COMPARED: "900x600"}, 60, []),
    "on 10% of few rows since another version serves": (
        {DISAGREEMENT: "0.005x20 0.1x580", COMPARED: "0+200x20 0+20x580"},
        60,
        [],
    ),
    "the drift watch alarms": ({DRIFT_ALARM: "0x10 1x590"}, 15, ["SoftkinDrift"]),
    "no drift state is written": ({UNSAVED: "0x10 1x590"}, 25, ["SoftkinDriftUnsaved"]),
    "the disk is full for five minutes": ({UNSAVED: "0x10 1x5 0x585"}, 40, []),
    "no drift state is kept": ({UNSAVED: ""}, 40, []),
    "15% flagged at alpha 5%": ({OUTLIERS: "0+150x600", INLIERS: "0+850x600"}, 90, ["SoftkinFlagRateAboveAlpha"]),
    "7% flagged at alpha 5%": ({OUTLIERS: "0+70x600", INLIERS: "0+930x600"}, 500, []),
    "15% flagged of few rows": ({OUTLIERS: "0+1x600", INLIERS: "0+6x600"}, 500, []),
    "15% flagged at alpha 10%": ({ALPHA: "0.1x600", OUTLIERS: "0+150x600", INLIERS: "0+850x600"}, 500, []),
    "small p-values, few flags": ({SMALL_P_VALUES: "0+350x600"}, 500, ["SoftkinPValuesTooSmallOften"]),
    "small p-values of a version that was unloaded": (
        {SMALL_P_VALUES: "0+350x300 stale", P_VALUES: "0+1000x300 stale", ALPHA: "0.05x300 stale"},
        310,
        [],
    ),
    "small p-values of few rows": ({SMALL_P_VALUES: "0+1x600", P_VALUES: "0+2x600"}, 500, []),
}


@pytest.fixture
def rules(root):
    """All rules of the file."""
    groups = yaml.safe_load((root / "deploy/prometheus/rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.fixture
def alerts(rules):
    """The alerts by name."""
    return {r["alert"]: r for r in rules if "alert" in r}


def promtool(program, *arguments):
    """Run promtool; its report is the failure message."""
    done = subprocess.run([program("promtool"), *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_the_configuration_and_the_rules(program, root):
    """`promtool check config` follows rule_files, so it parses every expression and template."""
    promtool(program, "check", "config", root / "deploy/prometheus/prometheus.yml")


@pytest.mark.parametrize("case", CASES)
def test_alerts_fire_when_they_should_and_no_other_does(program, root, tmp_path, case):
    """The set of firing alerts at one moment, over a healthy server with one difference."""
    difference, minutes, expected = CASES[case]
    series = {name: values for name, values in {**HEALTHY, **difference}.items() if values}
    test = {
        "rule_files": [str(root / "deploy/prometheus/rules.yml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": s, "values": v} for s, v in series.items()],
                "promql_expr_test": [
                    {
                        "expr": 'group by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": f"{minutes}m",
                        "exp_samples": [{"labels": f'{{alertname="{a}"}}', "value": 1} for a in expected],
                    }
                ],
            }
        ],
    }
    (tmp_path / "case.yml").write_text(yaml.safe_dump(test))

    promtool(program, "test", "rules", tmp_path / "case.yml")


@pytest.mark.parametrize(
    ("expiry", "said"), [(6 * DAY + 1200, "expires in 6d 0h 0m 0s"), (600, "has expired: new connections fail")]
)
def test_the_certificate_is_said_to_expire_or_to_have_expired(program, root, tmp_path, alerts, expiry, said):
    """Not that it expires in less than no time."""
    annotations = alerts["SoftkinCertificateExpires"]["annotations"]
    description = f"The certificate of a:9090 {said}. Renewed files are used without a restart."
    labels = {"severity": "warning", "job": "softkin", "instance": "a:9090"}
    expected = {"exp_labels": labels, "exp_annotations": {**annotations, "description": description}}
    test = {
        "rule_files": [str(root / "deploy/prometheus/rules.yml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": EXPIRY, "values": f"{expiry}x30"}],
                "alert_rule_test": [
                    {"eval_time": "20m", "alertname": "SoftkinCertificateExpires", "exp_alerts": [expected]}
                ],
            }
        ],
    }
    (tmp_path / "case.yml").write_text(yaml.safe_dump(test))

    promtool(program, "test", "rules", tmp_path / "case.yml")


def test_every_alert_is_shown_to_fire(alerts):
    """An alert without a case above could be one that never fires."""
    assert {name for _, _, expected in CASES.values() for name in expected} == set(alerts)


def test_every_alert_says_what_it_means_and_where_its_runbook_is(alerts, root):
    """Summary, description, severity, and an anchor that exists in the page it names."""
    page = (root / "docs/operations.md").read_text()
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", h).replace(" ", "-").lower() for h in headings}

    for name, alert in alerts.items():
        assert alert["annotations"].keys() == {"summary", "description", "runbook"}
        assert alert["labels"]["severity"] in {"critical", "warning"}
        assert alert["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
        assert name.lower() in anchors
