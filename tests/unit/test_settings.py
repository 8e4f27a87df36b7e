from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from softkin.errors import InvalidInputError
from softkin.flags import add_flags, as_set, from_flags
from softkin.settings import ServerSettings
from softkin.sources import GUARDS


def parse(*arguments):
    """Settings from a command line."""
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return from_flags(parser.parse_args(arguments))


def test_the_defaults_are_those_of_the_documentation():
    """Changing one changes how every deployment behaves."""
    assert parse("b").model_dump() == {
        "bundles": (Path("b"),),
        "host": "0.0.0.0",
        "port": 50051,
        "metrics_port": 9090,
        "device": "auto",
        "alpha": None,
        "guarantee": "marginal",
        "confidence": 0.95,
        "drift_level": 0.01,
        "drift_state": None,
        "drift_save_seconds": 10,
        "threads": None,
        "workers": 2,
        "max_rows": 4096,
        "max_message_bytes": 64 * 1024 * 1024,
        "max_pending_rows": 16384,
        "max_pending_bytes": 512 * 1024 * 1024,
        "max_pending_requests": 128,
        "max_streams": 32,
        "stream_window": 32,
        "max_batch_rows": 256,
        "batch_delay_seconds": 0,
        "max_neighbors": 100,
        "row_names": False,
        "drain_delay_seconds": 0,
        "drain_grace_seconds": 30,
        "admin_port": None,
        "admin_host": "127.0.0.1",
        "bundle_root": None,
        "reload_policy": "availability",
        "shadow_share": 0.1,
        "shadow_min_rows": 1000,
        "shadow_max_disagreement": 0.05,
        "tls_cert": None,
        "tls_key": None,
        "tls_client_ca": None,
        "token_file": None,
        "reflection": True,
        "inference_protocol": True,
        "max_connection_age_seconds": None,
        "max_connection_age_grace_seconds": 60,
        "keepalive_seconds": 60,
        "min_ping_interval_seconds": 10,
        "config": None,
        "log_level": "info",
        "log_format": "text",
        "tracing": False,
    }


def test_a_flag_beats_the_environment_which_beats_the_default(monkeypatch):
    """Flag > SOFTKIN_* > default."""
    monkeypatch.setenv("SOFTKIN_PORT", "1111")
    monkeypatch.setenv("SOFTKIN_WORKERS", "7")

    settings = parse("b", "--port", "2222")

    assert (settings.port, settings.workers, settings.max_rows) == (2222, 7, 4096)


VALUES = {
    "host": "::1",
    "port": "1",
    "metrics_port": "2",
    "device": "cpu",
    "alpha": "0.25",
    "guarantee": "certified",
    "confidence": "0.5",
    "drift_level": "0.125",
    "drift_state": "/state",
    "drift_save_seconds": "0.75",
    "threads": "3",
    "workers": "4",
    "max_rows": "5",
    "max_message_bytes": "6000",
    "max_pending_rows": "7",
    "max_pending_requests": "8",
    "max_pending_bytes": "65536",
    "max_streams": "10",
    "stream_window": "11",
    "max_batch_rows": "12",
    "batch_delay_seconds": "0.5",
    "max_neighbors": "9",
    "row_names": "True",
    "drain_delay_seconds": "1.5",
    "drain_grace_seconds": "2.5",
    "admin_port": "13",
    "admin_host": "::2",
    "bundle_root": "/",
    "reload_policy": "resource",
    "shadow_share": "0.375",
    "shadow_min_rows": "14",
    "shadow_max_disagreement": "0.625",
    "tls_cert": "/tls/a.crt",
    "tls_key": "/tls/a.key",
    "tls_client_ca": "/tls/ca.crt",
    "token_file": "/tokens",
    "reflection": "False",
    "inference_protocol": "False",
    "max_connection_age_seconds": "3.5",
    "max_connection_age_grace_seconds": "4.5",
    "keepalive_seconds": "5.5",
    "min_ping_interval_seconds": "6.5",
    "log_level": "debug",
    "log_format": "json",
    "tracing": "True",
}
"""Another value than the default for every option that a file can hold, as text."""


def test_every_option_can_be_set_by_flag_by_variable_and_by_key(monkeypatch, tmp_path):
    """And all three mean the same."""
    by_flag = parse("b", *(part for name, v in VALUES.items() for part in ("--" + name.replace("_", "-"), v)))
    file = tmp_path / "softkin.toml"
    file.write_text("".join(f"{name} = {v!r}\n" for name, v in VALUES.items()))
    by_key = parse("b", "--config", str(file))
    for name, value in VALUES.items():
        monkeypatch.setenv("SOFTKIN_" + name.upper(), value)

    by_variable = parse("b")

    assert by_flag == by_variable == by_key.model_copy(update={"config": None})
    assert set(VALUES) | {"bundles", "config"} == set(ServerSettings.model_fields)
    assert {k: str(v) for k, v in by_flag.model_dump().items() if k not in ("bundles", "config")} == VALUES


def test_bundles_come_from_the_arguments_or_from_the_environment(monkeypatch):
    """The variable separates paths with a colon, as PATH does."""
    monkeypatch.setenv("SOFTKIN_BUNDLES", "/a:/b")

    assert parse().bundles == (Path("/a"), Path("/b"))
    assert parse("/c").bundles == (Path("/c"),)


def test_no_bundle_is_an_error_that_names_both_ways():
    """A server without a detector has nothing to serve."""
    with pytest.raises(InvalidInputError, match=r"BUNDLE: none given; .* SOFTKIN_BUNDLES"):
        parse()


@pytest.mark.parametrize(
    ("flag", "value", "allowed"),
    [
        ("--port", "65536", "allowed: 0 to 65535"),
        ("--port", "-1", "allowed: 0 to 65535"),
        ("--port", "http", "allowed: 0 to 65535"),
        ("--alpha", "0", "allowed: more than 0 to less than 1"),
        ("--alpha", "1", "allowed: more than 0 to less than 1"),
        ("--alpha", "nan", "allowed: more than 0 to less than 1"),
        ("--guarantee", "most", "allowed: marginal, certified, class_conditional, false_discovery_rate"),
        ("--confidence", "0", "allowed: more than 0 to less than 1"),
        ("--confidence", "1", "allowed: more than 0 to less than 1"),
        ("--confidence", "nan", "allowed: more than 0 to less than 1"),
        ("--drift-level", "1", "allowed: more than 0 to less than 1"),
        ("--drift-save-seconds", "0", "allowed: more than 0 to 3600"),
        ("--drift-save-seconds", "inf", "allowed: more than 0 to 3600"),
        ("--threads", "0", "allowed: 1 to 1024"),
        ("--max-rows", "0", "allowed: 1 to 1048576"),
        ("--drain-grace-seconds", "inf", "allowed: 0 to 3600"),
        ("--drain-grace-seconds", "nan", "allowed: 0 to 3600"),
        ("--reflection", "maybe", "allowed: true, false"),
        ("--max-connection-age-seconds", "0", "allowed: 1 to 604800"),
        ("--keepalive-seconds", "0.5", "allowed: 1 to 7200"),
        ("--min-ping-interval-seconds", "-1", "allowed: 0 to 7200"),
        ("--device", "gpu", "must be auto, cpu, cuda, cuda:N, or several of cpu and cuda:N separated by commas"),
        ("--bundle-root", "/there/is/none", "it must be a directory"),
        ("--bundle-root", "a" * 300, "it must be a directory"),  # too long for any name
        ("--log-level", "loud", "allowed: debug, info, warning, error"),
    ],
)
def test_a_wrong_value_is_refused_with_its_source_and_the_allowed_range(monkeypatch, flag, value, allowed):
    """By flag the message names the flag, by variable the variable."""
    with pytest.raises(InvalidInputError) as by_flag:
        parse("b", f"{flag}={value}")
    variable = "SOFTKIN_" + flag[2:].replace("-", "_").upper()
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidInputError) as by_variable:
        parse("b")

    assert str(by_flag.value) == f"{flag}: got {value!r}; {allowed}"
    assert str(by_variable.value) == f"{variable}: got {value!r}; {allowed}"


def test_an_option_is_called_what_it_was_set_by(monkeypatch, tmp_path):
    """For errors that come later, as that of an alpha which a bundle cannot honour."""
    (tmp_path / "s.toml").write_text("device = 'cpu'")
    monkeypatch.setenv("SOFTKIN_CONFIDENCE", "0.9")
    parser = argparse.ArgumentParser()
    add_flags(parser)
    flags = parser.parse_args(["b", "--alpha", "0.1", "--config", str(tmp_path / "s.toml")])
    names = ["alpha", "confidence", "device", "guarantee", "nothing"]

    found = [as_set(name, flags, from_flags(flags)) for name in names]

    assert found == ["--alpha", "SOFTKIN_CONFIDENCE", f"{tmp_path}/s.toml: device", "guarantee", "nothing"]


@pytest.mark.parametrize("option", ["--host", "--bundle-root", "--drift-state", "--token-file", "--config"])
def test_an_empty_flag_is_refused(option):
    """It is a variable of a script that was not set; as a path it would mean the current directory."""
    with pytest.raises(InvalidInputError, match=rf"^{option}: got ''; it is empty"):
        parse("b", option, "")


@pytest.mark.parametrize("option", ["--host", "--admin-host"])
@pytest.mark.parametrize("host", ["[::1]", "[::1]:50051", "localhost:50051", "127.0.0.1:0", "softkin.example:"])
def test_a_host_is_no_target(option, host):
    """Clients take both in one; the system would say of it only that there is no such name."""
    with pytest.raises(
        InvalidInputError, match=rf"^{option}: got '{re.escape(host)}'; it is a name or address alone: "
    ):
        parse("b", option, host)


@pytest.mark.parametrize("host", ["::1", "::", "fe80::1%eth0", "::ffff:10.0.0.7"])
def test_an_ipv6_address_is_a_host(host):
    """As it stands, without brackets."""
    assert parse("b", "--host", host).host == host


def test_a_host_of_blanks_is_refused():
    """It would be looked up, and be said to be held by another process."""
    with pytest.raises(InvalidInputError, match=r"^--host: got ' '; it is empty"):
        parse("b", "--host", " ")


@pytest.mark.parametrize("option", ["--drift-state", "--token-file", "--tls-cert", "--bundle-root"])
def test_a_home_that_no_shell_has_put_in_its_place_is_refused(option, monkeypatch):
    """None does in `--drift-state=~/state`, nor in a variable of a unit file: a folder named '~' would be made."""
    said = "got '~/state'; '~' is replaced by a shell alone, and only where a word begins with it; write the whole path"
    with pytest.raises(InvalidInputError, match=f"^{option}: {said}$"):
        parse("b", f"{option}=~/state")
    monkeypatch.setenv(f"SOFTKIN_{option[2:].replace('-', '_').upper()}", "~/state")
    with pytest.raises(InvalidInputError, match=f"^SOFTKIN_.*: {said}$"):
        parse("b")


def test_so_is_that_of_a_bundle_and_no_other_path_is(monkeypatch):
    """Blanks are part of a path, and so is a '~' anywhere but at its beginning."""
    with pytest.raises(InvalidInputError, match=r"^BUNDLE: got .*'~/b'.*; '~' is replaced by a shell alone"):
        parse("a", "~/b")
    monkeypatch.setenv("SOFTKIN_BUNDLES", "a:~/b")
    with pytest.raises(InvalidInputError, match=r"^SOFTKIN_BUNDLES: got 'a:~/b'; '~' is replaced by a shell alone"):
        parse()

    settings = parse("./~b c", "--drift-state", "a ~")

    assert (settings.bundles, settings.drift_state) == ((Path("~b c"),), Path("a ~"))


@pytest.mark.parametrize("paths", ["a:", ":a", "a::b"])
def test_an_empty_bundle_path_is_refused(monkeypatch, paths):
    """Likewise."""
    monkeypatch.setenv("SOFTKIN_BUNDLES", paths)

    with pytest.raises(InvalidInputError, match=f"^SOFTKIN_BUNDLES: got '{paths}'; one of the paths is empty"):
        parse()
    with pytest.raises(InvalidInputError, match=r"^BUNDLE: got .*; one of the paths is empty"):
        parse("a", "")


@pytest.mark.parametrize(
    ("pending", "largest"), [("max_pending_rows", "max_rows"), ("max_pending_bytes", "max_message_bytes")]
)
def test_limits_that_contradict_each_other_are_refused(pending, largest):
    """The largest request must be admissible, and where nothing else is pending it may take all the room."""
    flag, most = f"--{pending.replace('_', '-')}", getattr(parse("b"), largest)

    with pytest.raises(InvalidInputError, match=f"{pending} {most - 1} is below {largest} {most}, so the largest"):
        parse("b", flag, str(most - 1))
    assert getattr(parse("b", flag, str(most)), pending) == most


def test_one_port_for_calls_and_metrics_is_refused_as_such():
    """Else the server would find it taken, by itself; 0 picks another one for each."""
    with pytest.raises(InvalidInputError, match="port and metrics_port are both 9090; give each its own"):
        parse("b", "--port", "9090")

    assert parse("b", "--port", "0", "--metrics-port", "0").port == 0


@pytest.mark.parametrize("other", ["port", "metrics_port"])
def test_the_admin_service_needs_a_port_of_its_own(other):
    """On an address that the other one listens on too; an address of its own may have the same number."""
    flags = ["b", "--port", "5000", "--metrics-port", "6000", "--admin-port", "5000" if other == "port" else "6000"]

    with pytest.raises(InvalidInputError, match=rf"{other} and admin_port are both \d000; give each its own"):
        parse(*flags)

    assert parse(*flags, "--host", "127.0.0.2").admin_host == "127.0.0.1"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tls-cert", "a"], "tls_cert is set without tls_key; TLS needs both"),
        (["--tls-key", "a"], "tls_key is set without tls_cert; TLS needs both"),
        (["--tls-client-ca", "a"], "tls_client_ca is set without tls_cert and tls_key"),
    ],
)
def test_half_of_tls_is_refused(flags, message):
    """A server that was meant to be encrypted must not come up in plaintext."""
    with pytest.raises(InvalidInputError, match=message):
        parse("b", *flags)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "softkin.example"])
def test_an_admin_port_that_others_can_reach_must_be_guarded(host):
    """Who calls it decides what is served; a token or client certificates guard it, loopback addresses need none."""
    flags = ["b", "--admin-host", host, "--admin-port", "1"]

    with pytest.raises(InvalidInputError, match=f"admin_host {host} can be reached from other machines.*token_file or"):
        parse(*flags)

    assert parse(*flags, "--token-file", "t").admin_host == host
    assert parse(*flags, "--tls-cert", "a", "--tls-key", "b", "--tls-client-ca", "c").admin_host == host
    assert parse("b", "--admin-host", host).admin_port is None
    assert parse("b", "--admin-host", "::1", "--admin-port", "1").admin_port == 1


@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_the_port_variable_of_a_kubernetes_service_is_ignored(monkeypatch, protocol):
    """A Service named softkin puts SOFTKIN_PORT=tcp://... into every pod of its namespace, or its own protocol."""
    monkeypatch.setenv("SOFTKIN_PORT", f"{protocol}://10.0.0.1:50051")
    monkeypatch.setenv("SOFTKIN_SERVICE_HOST", "10.0.0.1")

    assert parse("b").port == 50051


def test_an_empty_variable_counts_as_not_set(monkeypatch):
    """As compose files leave them."""
    monkeypatch.setenv("SOFTKIN_ALPHA", "")

    assert parse("b").alpha is None


@pytest.mark.parametrize("name", GUARDS)
def test_but_none_that_keeps_strangers_out(monkeypatch, name):
    """`${TOKEN_FILE}` that nobody has set would open the server to everybody."""
    monkeypatch.setenv("SOFTKIN_" + name.upper(), "")

    with pytest.raises(InvalidInputError, match=f"SOFTKIN_{name.upper()}.*it is empty; leave the option out, or give"):
        parse("b")


def test_settings_cannot_change_after_the_start():
    """Everything that reads them may keep what it read."""
    with pytest.raises(ValueError, match="frozen"):
        parse("b").port = 1
