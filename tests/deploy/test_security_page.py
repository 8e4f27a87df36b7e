"""What docs/security.md tells operators to type is what the commands take."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml

from softkin.cli import COMMANDS, build_parser
from softkin.settings import ServerSettings


@pytest.fixture
def page(root):
    """The page."""
    return (root / "docs/security.md").read_text()


def test_every_command_parses(page):
    """The indented lines that begin with softkin."""
    commands = re.findall(r"^    softkin (.+)$", page, re.MULTILINE)

    for line in commands:
        arguments = shlex.split(line)
        build_parser(arguments[0])[0].parse_args(arguments)
    assert {line.split()[0] for line in commands} == {"serve", "score"}


def test_every_probe_is_a_health_check(page):
    """The YAML parses, and the command in it is one of the image's."""
    [example] = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    probes = yaml.safe_load(example)

    program, *arguments = probes["readinessProbe"]["exec"]["command"]
    options = build_parser("healthcheck")[0].parse_args(arguments)
    assert program == "softkin"
    assert options.target == f"127.0.0.1:{ServerSettings.model_fields['port'].default}"
    assert options.timeout < probes["readinessProbe"]["timeoutSeconds"]


def test_every_flag_and_variable_exists(page):
    """In any of the commands, or of the settings."""
    flags = {o for c in COMMANDS for action in build_parser(c)[1]._actions for o in action.option_strings}

    named = set(re.findall(r"`(--[a-z-]+)", page)) - {"--health-cmd"}
    variables = {v.lower() for v in re.findall(r"SOFTKIN_([A-Z_]+)", page)}

    assert len(named) > 10
    assert named <= flags
    assert variables <= ServerSettings.model_fields.keys()


def test_the_table_of_defaults_is_that_of_the_settings(page):
    """What is said to be off is not set, what is said to be on is."""
    rows = re.findall(r"^\| [^|]+ \| (off|on)[^|]* \| `--([a-z-]+)", page, re.MULTILINE)

    found = {name.replace("-", "_"): state == "on" for state, name in rows}
    assert found.keys() == {"tls_cert", "tls_client_ca", "token_file", "admin_port", "reflection", "metrics_port"}
    assert {name: bool(ServerSettings.model_fields[name].default) for name in found} == found
