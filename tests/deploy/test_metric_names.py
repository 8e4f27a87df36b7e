"""Whatever names a metric names one that exists, with labels and values that exist."""

from __future__ import annotations

import json
import re
import threading

import grpc
import pytest
import yaml

import resealed
from softkin.errors import InvalidInputError
from softkin.metrics import REJECTED

METRIC = re.compile(r"(?<![\w:./])((?:softkin|grpc_server|process|python)_[a-z0-9_]+)(?![\w:./])")
SELECTOR = re.compile(r"(?<![\w:])([a-z_]+)\{([^}]*)\}")
MATCHER = re.compile(r'([a-z_]+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
# What Prometheus itself adds to every series it scrapes.
TARGET_LABELS = {"job", "instance"}


@pytest.fixture
def families(served, tiny, tmp_path):
    """Every metric family of a server that has answered and refused a request, and has a shadow."""
    resealed.copy(tiny.path, tmp_path / "candidate", version="2")
    served.admin.load("candidate", ["shadow"])
    served.client.score(tiny.inliers[:5])
    compared = {"detector": "tiny", "version": "2", "result": "agree"}
    for _ in range(1000):
        if served.registry.get_sample_value("softkin_shadow_rows_total", compared):
            break
        threading.Event().wait(0.01)
    with pytest.raises(InvalidInputError):
        served.client.score(tiny.inliers[:5], alpha=2.0)
    return list(served.registry.collect())


@pytest.fixture
def labels(families):
    """Label names and their values, by name of the series."""
    found: dict[str, dict[str, set[str]]] = {}
    for family in families:
        for sample in family.samples:
            values = found.setdefault(sample.name, {})
            for key, value in sample.labels.items():
                values.setdefault(key, set()).add(value)
    return found


def sources(root):
    """Text that names metrics, by file: rules, page, and every dashboard there is."""
    dashboards = sorted((root / "deploy").rglob("*.json"))
    paths = [root / "deploy/prometheus/rules.yml", root / "docs/operations.md", root / "docs/deploy.md", *dashboards]
    return {p.relative_to(root).as_posix(): p.read_text() for p in paths}


def expressions(root):
    """Every PromQL expression: of the rules, and of the dashboards' panels."""
    groups = yaml.safe_load((root / "deploy/prometheus/rules.yml").read_text())["groups"]
    found = [rule["expr"] for group in groups for rule in group["rules"]]
    for path in sorted((root / "deploy").rglob("*.json")):
        stack = [json.loads(path.read_text())]
        while stack:
            node = stack.pop()
            if isinstance(node, dict):
                found += [node["expr"]] if isinstance(node.get("expr"), str) else []
                stack += node.values()
            elif isinstance(node, list):
                stack += node
    return found


def test_every_metric_that_is_named_exists(labels, families, root):
    """Rules, page and dashboards: a renamed metric must not leave an alert that never fires."""
    known = {*labels, *(family.name for family in families)}

    for file, text in sources(root).items():
        named = {name for name in METRIC.findall(text) if not name.endswith("_")}

        assert named, f"{file} names no metric: the pattern is wrong"
        assert named <= known, f"{file} names metrics that do not exist: {sorted(named - known)}"


def test_every_label_that_is_selected_exists_with_that_value(labels, root):
    """A selector on a label or value that no series has matches nothing, silently."""
    codes = {code.name for code in grpc.StatusCode}
    fixed = {"reason": set(REJECTED), "verdict": {"inlier", "outlier"}, "grpc_code": codes}
    checked = 0
    for expression in expressions(root):
        for name, selector in SELECTOR.findall(expression):
            for label, value in MATCHER.findall(selector):
                if label in TARGET_LABELS or value.startswith("$"):  # chosen in the dashboard
                    continue
                assert label in labels[name], f"{name} has no label {label}"
                allowed = fixed.get(label, labels[name][label])
                assert set(value.split("|")) <= allowed, f"{name}: {label} is never {value}"
                checked += 1

    assert checked >= 4


def test_labels_that_are_aggregated_by_exist(labels, root):
    """`by`, `on` and `group_left` name labels that softkin or Prometheus sets."""
    known = TARGET_LABELS.union(*labels.values())

    for expression in expressions(root):
        for names in re.findall(r"\b(?:by|on|without|ignoring|group_left)\s*\(([^)]+)\)", expression):
            assert {n.strip() for n in names.split(",")} <= known, expression


def test_the_page_lists_every_metric_with_its_type_and_labels(families, root):
    """The table of docs/operations.md is complete and exact."""
    actual = {}
    for family in families:
        if family.name.startswith(("softkin_", "grpc_server_")):
            name = family.name + ("_total" if family.type == "counter" else "")
            names = {key for s in family.samples for key in s.labels} - {"le"}
            actual[name] = (family.type, names)

    listed = {}
    page = (root / "docs/operations.md").read_text()
    for name, kind, names in re.findall(r"^\| `(\w+)` \| (counter|gauge|histogram) \| ([^|]*)\|", page, re.MULTILINE):
        listed[name] = (kind, set(re.findall(r"`(\w+)`", names)))

    assert listed == actual


def test_the_page_lists_every_reason_of_a_rejection(root):
    """The values of `reason` are part of what alerts are built on."""
    page = (root / "docs/operations.md").read_text()
    row = re.search(r"^\| `softkin_rejected_total` .*$", page, re.MULTILINE)

    assert row is not None
    assert tuple(re.findall(r"`(\w+)`", row[0])[2:]) == REJECTED
