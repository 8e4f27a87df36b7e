"""The Grafana dashboard: it loads, fits the alerts, and every query gives data of a server with traffic."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import time
import urllib.error

import numpy as np
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

import resealed
from softkin.errors import InvalidInputError

DEADLINE_SECONDS = 60
# Grafana writes these, its published schema does not have them.
OUTSIDE_THE_SCHEMA = {"/annotations/list/builtIn", "/templating/list/definition"}
# Data only after an event: on a healthy server no alert fires.
ONLY_AFTER_AN_EVENT = {"Firing alerts"}
# What Grafana puts in the place of its variables; the windows fit a scrape each second.
VARIABLES = {"$__rate_interval": "5s", "$__range": "1m", "$job": "softkin", "$instance": ".*", "$detector": ".*"}
COMPARISON = re.compile(r"(?:[<>]=?|==) (\d[\d.]*(?: \* \d+)?)(?! \*)\b")
UNITS = {"short", "s", "bytes", "percentunit", "reqps", "rowsps"}


@pytest.fixture
def dashboard(root):
    """The file."""
    return json.loads((root / "deploy/grafana/softkin.json").read_text())


@pytest.fixture
def panels(dashboard):
    """Its panels that show data, by title."""
    return {panel["title"]: panel for panel in dashboard["panels"] if panel["type"] != "row"}


@pytest.fixture
def alerts(root):
    """Expressions of the alerts, by name."""
    groups = yaml.safe_load((root / "deploy/prometheus/rules.yml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"] if "alert" in rule}


@pytest.fixture
def adapter(root):
    """The query of the rule that the autoscaler on a GPU needs, for the pods of a namespace."""
    file = root / "deploy/kubernetes/components/busy-workers/adapter.yaml"
    (rule,) = yaml.safe_load(file.read_text())["rules"]
    series = re.match(r"\w+", rule["seriesQuery"])[0]
    filled = {"<<.Series>>": series, "<<.GroupBy>>": "pod", "<<.LabelMatchers>>": 'namespace="here",pod=~"softkin-.*"'}
    return replaced(rule["metricsQuery"], {**filled, "[2m]": "[5s]"})


def replaced(expression, values):
    """A query with the placeholders that somebody else fills."""
    for name, value in values.items():
        expression = expression.replace(name, value)
    return expression


def queries(panels, variables):
    """Every query, by title of its panel and its letter."""
    return {
        f"{title} {target['refId']}": replaced(target["expr"], variables)
        for title, panel in panels.items()
        for target in panel["targets"]
    }


def panel_of(query):
    """The title of the panel that a query is in."""
    return query.rpartition(" ")[0]


def lost(before, after, path=""):
    """Paths, without numbers, of what is in one structure and not in the other, or not the same there."""
    if isinstance(before, dict) and isinstance(after, dict):
        return set().union(*(lost(v, after.get(k), f"{path}/{k}") for k, v in before.items()))
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return set().union(*(lost(a, b, path) for a, b in zip(before, after, strict=True)))
    return set() if before == after else {path}


def test_every_field_is_one_of_grafanas_schema(dashboard):
    """Read and written again by Grafana's own library, which loses what its types of panels do not have."""
    register_default_plugins()

    again = json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))

    thresholds = {
        p for p in lost(dashboard, again) if p.endswith("/thresholds/steps/value")
    }  # null: from minus infinity
    assert lost(dashboard, again) - thresholds == OUTSIDE_THE_SCHEMA


def test_no_panel_lies_on_another_and_none_beyond_the_edge(dashboard):
    """Grafana has 24 columns, and moves what overlaps."""
    places = [(p["title"], p["gridPos"]) for p in dashboard["panels"]]

    for name, place in places:
        assert place["x"] >= 0, name
        assert place["x"] + place["w"] <= 24, name
    for (one, a), (other, b) in itertools.combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        below = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or below, f"{one} overlaps {other}"
    assert len({p["id"] for p in dashboard["panels"]}) == len(places)
    assert len({name for name, _ in places}) == len(places)


def test_every_panel_says_what_to_do_and_has_a_unit(panels):
    """Tables of words and heat maps, which count rows, need no unit."""
    for title, panel in panels.items():
        assert len(panel["description"].split()) >= 12, title
        if panel["type"] not in ("table", "heatmap", "state-timeline"):
            assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, title


def test_every_query_asks_the_chosen_data_source_job_and_instances(dashboard, panels):
    """And the chosen detectors, where a metric has them; variables that are used are declared, and the reverse."""
    declared = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(panels))) | {"datasource"}

    assert {name for name in used if not name.startswith("__")} == declared
    variables = [v for v in dashboard["templating"]["list"] if v["type"] == "query"]
    for asking in (*variables, *panels.values(), *(t for panel in panels.values() for t in panel["targets"])):
        assert asking["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels.values():
        for target in panel["targets"]:
            for name, selector in re.findall(r"(\w+)\{([^}]*)\}", target["expr"]):
                assert 'job="$job"' in selector
                assert name == "ALERTS" or 'instance=~"$instance"' in selector
                of_detector = name.startswith(("softkin_drift", "softkin_shadow", "softkin_rows", "softkin_p_value"))
                assert ('detector=~"$detector"' in selector) or not of_detector


def test_every_alert_has_a_panel_that_names_it_and_shows_its_limit(panels, alerts):
    """With another one the panel says that all is well while the alert wakes somebody, or the reverse."""
    products = {name: COMPARISON.findall(expression) for name, expression in alerts.items()}
    limits = {name: {math.prod(map(float, n.split(" * "))) for n in found} for name, found in products.items()}
    checked = set()
    for title, panel in panels.items():
        named = {name for name in alerts if re.search(rf"\b{name}\b", panel["description"])}
        thresholds = panel["fieldConfig"]["defaults"].get("thresholds", {"steps": []})
        shown = {step["value"] for step in thresholds["steps"]} - {None}
        for limit in shown if named else ():
            assert all(limit in limits[name] for name in named), f"{title}: {limit} is no limit of {named}"
            checked |= named

    text = " ".join(panel["description"] for panel in panels.values())
    assert {name for name in alerts if name not in text} == set()
    # Up, ready and failed reloads are counted; the flag rate's limit is a line of its own.
    without = {"SoftkinDown", "SoftkinNotReady", "SoftkinReloadFailed", "SoftkinFlagRateAboveAlpha"}
    assert set(alerts) - checked == without
    assert "> 2 * job_detector_version:softkin_alpha:max" in alerts["SoftkinFlagRateAboveAlpha"]
    assert any(e.startswith("2 * max by") for e in queries(panels, {}).values())


def test_prometheus_can_parse_every_query(panels, adapter, program, tmp_path):
    """The autoscaler's too."""
    expressions = [*queries(panels, VARIABLES).values(), adapter]
    rules = [{"record": f"query_{i}", "expr": e} for i, e in enumerate(expressions)]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))

    done = subprocess.run(
        [program("promtool"), "check", "rules", "--lint=none", tmp_path / "queries.yml"],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(expressions)} rules found" in done.stdout


@pytest.mark.slow
def test_every_query_gives_data_of_a_server_with_traffic(
    served, tiny, panels, dashboard, adapter, prometheus, tmp_path
):
    """With callers, refusals and a shadow; the lists of jobs, instances and detectors are not empty either."""
    resealed.copy(tiny.path, tmp_path / "candidate", version="2")
    served.admin.load("candidate", ["shadow"])
    waiting = {"the autoscaler": adapter, **queries(panels, VARIABLES)}
    # All of them in turn: the same few again and again are drift, and its alarm fires.
    healthy = itertools.cycle(np.split(tiny.inliers, len(tiny.inliers) // 20))
    give_up = time.monotonic() + DEADLINE_SECONDS
    while {panel_of(query) for query in waiting} - ONLY_AFTER_AN_EVENT and time.monotonic() < give_up:
        served.client.score(next(healthy))
        with pytest.raises(InvalidInputError):
            served.client.score(tiny.inliers[:1], alpha=2.0)
        try:
            waiting = {k: e for k, e in waiting.items() if not any(map(math.isfinite, prometheus.values(e)))}
        except urllib.error.URLError:  # it is still starting
            time.sleep(0.2)

    assert {panel_of(query) for query in waiting} == ONLY_AFTER_AN_EVENT, waiting
    for variable in dashboard["templating"]["list"][1:]:
        series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()
        found = prometheus.get("/api/v1/series", **{"match[]": replaced(series, VARIABLES)})
        assert found, variable["name"]
        assert all(one[label] for one in found)
