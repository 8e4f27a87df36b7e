"""What docs/operations.md tells operators is what the code says: flags, statuses, alerts, log events, faults."""

from __future__ import annotations

import ast
import re

import pytest
import yaml

from softkin import errors
from softkin.cli import build_parser
from softkin.metrics import REJECTED
from softkin.settings import ServerSettings
from softkin.sources import POSITIONAL, flag, variable
from softkin.statuses import REASONS, STATUS_CODES, failure

HELP = re.compile(r"(?P<meaning>.*?) \[(?:allowed: (?P<allowed>[^;]*); )?default: (?P<default>.*); env: (?P<env>\w+)\]")
DETAIL = re.compile(r"`(BadRequest|RetryInfo|RequestInfo)`")
# Raised by the admin service alone, whose calls are no requests for scores.
ADMIN = (errors.ConflictError, errors.PreconditionError)
# What gRPC ends by itself: no error of softkin's stands behind it.
OF_GRPC = {("RESOURCE_EXHAUSTED", "undelivered", ()), ("UNIMPLEMENTED", "", ())}


@pytest.fixture
def page(root):
    """The page."""
    return (root / "docs/operations.md").read_text()


def section(page, heading):
    """The text under a heading, up to the next one of its level or above."""
    level, text = re.search(rf"^(#+) {re.escape(heading)}\n(.*)", page, re.MULTILINE | re.DOTALL).groups()
    return re.split(rf"^#{{1,{len(level)}}} ", text, maxsplit=1, flags=re.MULTILINE)[0]


def table(text):
    """The cells of a section's table, without its head."""
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines() if line[:1] == "|"][2:]


def anchors(page):
    """What links into a page may name."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h).replace(" ", "-").lower() for h in headings}


def flag_table():
    """The table of flags as it must stand in the page."""
    helps = {action.dest: action.help.replace("%%", "%") for action in build_parser("serve")[1]._actions}
    lines = ["| flag | variable | default | allowed | meaning |", "|---|---|---|---|---|"]
    for name, field in ServerSettings.model_fields.items():
        if name == POSITIONAL:
            default, allowed, meaning = "none", "paths", field.description
        else:
            found = HELP.fullmatch(helps[name])
            assert found is not None, helps[name]
            assert found["env"] == variable(name)
            default = found["default"] if found["default"] == "not set" else f"`{found['default']}`"
            allowed, meaning = (
                found["allowed"] or ("path" if "Path" in str(field.annotation) else "text"),
                found["meaning"],
            )
        lines.append(f"| `{flag(name)}` | `{variable(name)}` | {default} | {allowed} | {meaning.replace('|', '')} |")
    return "\n".join(lines)


def test_every_flag_is_there_and_exact(page):
    """As `softkin serve --help` has it. On failure, what is printed is what to put there."""
    expected = flag_table()

    assert expected in section(page, "Flags"), f"the table of flags must be:\n\n{expected}\n"


def outcomes():
    """Status, reason and details of every error that the service knows."""
    made = [
        errors.InvalidInputError("field", "message"),
        errors.CancelledError(),
        errors.ExpiredError(),
        errors.OverloadedError("message", 0.5),
        errors.UnmeetableError("message", 0.5),
        errors.UnavailableError("message", 2.0),
    ]
    made += [
        kind("message") for kind in STATUS_CODES if kind not in {type(e) for e in made} - {errors.UnavailableError}
    ]
    for error in made:
        found = failure(error, "Score")
        reason = "" if isinstance(error, ADMIN) else found.reason
        yield found.code.name, reason, tuple(detail.DESCRIPTOR.name for detail in found.details)


def test_every_status_is_there_with_its_reason_and_details(page):
    """No way to end that the table does not name, and none in the table that does not exist."""
    rows = table(section(page, "Status codes"))

    listed = {
        (code.strip("`"), reason.strip("`"), tuple(DETAIL.findall(details))) for code, reason, details, *_ in rows
    }

    assert listed == set(outcomes()) | OF_GRPC
    assert {code.name for code in REASONS} <= {code for code, *_ in listed}
    assert {reason for _, reason, _ in listed} - {""} == set(REJECTED)
    assert all(cell for row in rows for cell in (row[0], *row[3:]))


def test_the_delays_are_those_of_the_code(page):
    """Seconds that a refused caller is told to wait."""
    from softkin import admin, admin_port, admission, registry, streaming

    text = " ".join(section(page, "Status codes").split())

    for module, words in ((admission, "full gate"), (streaming, "too many streams"), (registry, "being replaced")):
        assert f"{words}: {module.RETRY_AFTER_SECONDS:g} s" in text
    full = f"where {admin.CHANGES} changes or {admin_port.MAX_CALLS} calls are under way"
    assert f"{full}: {admin.RETRY_AFTER_SECONDS:g} s" in text


def test_every_alert_has_a_section_and_every_section_an_alert(page, root):
    """In the order of the rules."""
    groups = yaml.safe_load((root / "deploy/prometheus/rules.yml").read_text())["groups"]
    alerts = [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule]

    sections = re.findall(r"^### (\w+)$", section(page, "Alerts"), re.MULTILINE)

    assert sections == alerts
    assert all(len(section(page, name).split()) > 30 for name in sections)


def test_every_event_of_the_log_is_there_with_its_level_and_no_other(page, root):
    """As the sources log it."""
    sources = "\n".join(p.read_text() for p in sorted((root / "service/softkin").glob("*.py")))
    logged = {
        (event, "error" if level == "exception" else level)
        for level, event in re.findall(r'log\.(\w+)\(\s*log_line\(\s*"(\w+)"', sources)
    }

    listed = [
        (event, level)
        for events, level, _ in table(section(page, "Events"))
        for event in re.findall(r"`(\w+)`", events)
    ]

    assert len(listed) == len(set(listed))
    assert set(listed) == logged
    assert len(re.findall(r"\blog_line\(", sources)) - 1 == len(re.findall(r"log\.\w+\(\s*log_line\(", sources))


def names_in(file):
    """Names of the test functions in a file."""
    functions = (n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.FunctionDef))
    return {f.name for f in functions if f.name.startswith("test_")}


def test_every_fault_names_the_test_that_shows_it(page, root):
    """A test of the chaos suite without a promise would be one whose promise nobody knows; a promise needs its test."""
    rows = table(section(page, "What is promised under faults"))
    named = [re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", shown) for _, _, shown in rows]

    chaos = {
        (file.relative_to(root).as_posix(), name)
        for file in sorted((root / "tests/chaos").glob("test_*.py"))
        for name in names_in(file)
    }

    assert all(named), "a row names no test"
    listed = {pair for pairs in named for pair in pairs}
    assert chaos - listed == set(), "these tests of the chaos suite stand beside no promise"
    for file, name in listed:
        assert name in names_in(root / file), f"{file} has no {name}"


def test_every_link_into_the_page_and_out_of_it_leads_somewhere(root):
    """From any page, the README included, to files and headings."""
    pages = {p.resolve(): p.read_text() for p in [root / "README.md", *sorted((root / "docs").glob("*.md"))]}
    checked = 0
    for path, text in pages.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"\w+:", target):
                continue
            name, _, anchor = target.partition("#")
            file = (path.parent / name).resolve() if name else path
            if "operations.md" not in (path.name, file.name):
                continue
            assert file.exists(), f"{path.name} links to {target}"
            if anchor:
                assert anchor in anchors(file.read_text()), f"{path.name} links to {target}"
            checked += 1

    assert checked > 5
