"""The command line: what it prints, how it fails, and what it does not import."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import beta

from softkin import cli
from standin import StandIn, manifest

CONNECTION = [
    "--target",
    "--timeout",
    "--tls-ca",
    "--tls-cert",
    "--tls-key",
    "--tls-server-name",
    "--token-file",
]
FLAGS = {
    "serve": [
        "--admin-host",
        "--admin-port",
        "--alpha",
        "--batch-delay-seconds",
        "--bundle-root",
        "--confidence",
        "--config",
        "--device",
        "--drain-delay-seconds",
        "--drain-grace-seconds",
        "--drift-level",
        "--drift-save-seconds",
        "--drift-state",
        "--guarantee",
        "--host",
        "--inference-protocol",
        "--keepalive-seconds",
        "--log-format",
        "--log-level",
        "--max-batch-rows",
        "--max-connection-age-grace-seconds",
        "--max-connection-age-seconds",
        "--max-message-bytes",
        "--max-neighbors",
        "--max-pending-bytes",
        "--max-pending-requests",
        "--max-pending-rows",
        "--max-rows",
        "--max-streams",
        "--metrics-port",
        "--min-ping-interval-seconds",
        "--port",
        "--print-config",
        "--reflection",
        "--reload-policy",
        "--row-names",
        "--shadow-max-disagreement",
        "--shadow-min-rows",
        "--shadow-share",
        "--stream-window",
        "--threads",
        "--tls-cert",
        "--tls-client-ca",
        "--tls-key",
        "--token-file",
        "--tracing",
        "--workers",
    ],
    "score": [
        "--alpha",
        "--confidence",
        "--detector",
        "--detector-version",
        "--flagged",
        "--guarantee",
        "--json",
        "--key",
        "--label",
        "--limit",
        "--neighbors",
        "--smoothing-seed",
        *CONNECTION,
    ],
    "status": ["--json", *CONNECTION],
    "drift": ["--detector", "--detector-version", "--json", "--label", *CONNECTION],
    "admin": CONNECTION,
    "inspect": ["--json", "--verify"],
    "export-onnx": ["--force"],
    "healthcheck": CONNECTION,
}


@pytest.fixture
def npz(tmp_path, rows):
    """An array file."""
    path = tmp_path / "arrays.npz"
    np.savez(path, x_test=rows(12), y_test=np.zeros(12, np.int32), other=rows(2), single=np.float32(1))
    return str(path)


@pytest.fixture
def bundle(tmp_path):
    """Enough of a bundle for `inspect`, which reads the manifest alone."""
    (tmp_path / "manifest.json").write_text(manifest().to_json())
    return str(tmp_path)


@pytest.mark.parametrize("command", FLAGS)
def test_the_flags_are_a_contract(command):
    """Adding, renaming or dropping one is a decision; this list changes with it."""
    _, parser = cli.build_parser(command)

    flags = sorted(o for action in parser._actions for o in action.option_strings if o not in ("-h", "--help"))

    assert flags == FLAGS[command]


def test_the_commands_are_a_contract():
    """The same for sub-commands."""
    assert sorted(cli.COMMANDS) == sorted(FLAGS)


def test_importing_the_command_line_imports_no_heavy_library():
    """`softkin inspect` answers without gRPC, ONNX Runtime, pydantic or torch."""
    heavy = ("grpc", "onnxruntime", "onnx", "torch", "pydantic", "rich", "google.protobuf")
    code = f"import softkin.cli, sys; print([m for m in {heavy!r} if m in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.strip() == "[]"


def test_score_prints_one_json_object_per_row_then_the_error_budget(server, npz, capsys):
    """The rows are those of the array, in order, with the numbers of the detector."""
    status = cli.main(["score", "--target", server.target, npz, "--json", "--alpha", "0.1", "--neighbors", "2"])

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    x = np.load(npz)["x_test"]
    expected = StandIn().score(x, alpha=0.1)
    assert status == 0
    assert [r["row"] for r in lines[:-1]] == list(range(12))
    assert [r["p_value"] for r in lines[:-1]] == expected.p_value.tolist()
    assert [r["is_outlier"] for r in lines[:-1]] == expected.is_outlier.tolist()
    assert [r["class_p_values"] for r in lines[:-1]] == expected.class_p_values.tolist()
    assert lines[0]["predicted_class_name"] == "ankle boot"
    assert [n["id"] for n in lines[0]["neighbors"]["dense"]] == [15, 16]
    assert lines[-1]["budget"] == {
        "rows": 12,
        "flagged": int(expected.is_outlier.sum()),
        "detector": "standin",
        "version": "1",
        "digest": StandIn().digest,
        "device": "cpu",
        "guarantee": "marginal",
        "alpha": 0.1,
        "confidence": 0.95,
        "p_value_threshold": 0.1,
        "false_alarm_bound": pytest.approx(beta.ppf(0.95, 10, 90), rel=1e-9),
        "fewest_selectable": None,
        "calibration_size": 99,
        "smallest_p_value": 0.01,
        "smoothed": False,
    }


def test_score_prints_a_table_and_puts_the_share_flagged_beside_alpha(server, npz, capsys, monkeypatch):
    """Verdict, class name, p-value, credibility and nearest labels; class names are shown as they are."""
    monkeypatch.setenv("COLUMNS", "160")

    status = cli.main(["score", "--target", server.target, npz, "--limit", "3", "--neighbors", "4"])

    out = capsys.readouterr().out
    flagged = int(StandIn().score(np.load(npz)["x_test"][:3]).is_outlier.sum())
    assert status == 0
    assert "outlier" in out
    assert "ankle boot x2, sandal, sneaker [new]" in out
    assert (
        f"3 rows, {flagged} flagged: {flagged / 3:.2%}; inliers alone would give about 5.00%, at most "
        f"{beta.ppf(0.95, 5, 95):.2%} with this calibration set, at confidence 0.95 (99 calibration rows; standin 1 on "
        "cpu)\n"
    ) in out


def test_score_shows_the_flagged_rows_alone_where_that_is_asked_for(server, npz, capsys):
    """By their numbers in the file; what is counted stays all rows."""
    assert cli.main(["score", "--target", server.target, npz, "--flagged", "--json"]) == 0

    *rows, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["row"] for row in rows] == np.flatnonzero(StandIn().score(np.load(npz)["x_test"]).is_outlier).tolist()
    assert 0 < len(rows) < last["budget"]["rows"] == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.npz"], "missing.npz: cannot be read (No such file or directory); check path and rights"),
        (["/"], "/: is a folder, not an .npz file of plain arrays; write one with numpy.savez(FILE, x_test=ROWS)"),
        (["NPZ", "--key", "x"], "has no array 'x'; it has: x_test, y_test, other, single; choose with --key"),
        (["NPZ", "--key", "single"], "array 'single' is a single value"),
        (["NPZ", "--key", "y_test"], "inputs: dtype is int32, this detector takes float32"),
        (["NPZ", "--alpha", "7"], "alpha: got 7;"),
        (
            ["NPZ", "--guarantee", "most"],
            "guarantee: got 'most'; allowed: marginal, certified, class_conditional, false_",
        ),
        (
            ["NPZ", "--guarantee", "certified", "--alpha", "0.02"],
            "alpha: got 0.02, but 99 calibration rows certify not",
        ),
        (["NPZ", "--confidence", "2"], "confidence: got 2; it must lie strictly in (0, 1)"),
        (["NPZ", "--smoothing-seed", "-1"], "--smoothing-seed: got -1; must lie in [0, 2^64)"),
        (["NPZ", "--neighbors", "-1"], "--neighbors: got -1; must be 0 or more"),
        (["NPZ", "--detector", "b"], "no detector named 'b'; loaded: standin version 1"),
    ],
)
def test_a_failed_score_says_why_on_stderr_and_exits_1(shared_server, npz, capsys, arguments, message):
    """No traceback."""
    arguments = [npz if a == "NPZ" else a for a in arguments]

    status = cli.main(["score", "--target", shared_server.target, *arguments])

    captured = capsys.readouterr()
    assert (status, captured.out) == (1, "")
    assert captured.err.startswith("softkin: error: ")
    assert message in captured.err


@pytest.mark.parametrize("command", [["score", "NPZ"], ["status"], ["drift"], ["healthcheck"], ["admin", "list"]])
def test_an_error_names_the_option_that_was_typed(shared_server, npz, capsys, command):
    """Not the argument of the library that it became."""
    name, *rest = [npz if a == "NPZ" else a for a in command]

    status = cli.main([name, "--target", shared_server.target, "--timeout", "0", *rest])

    assert status == 1
    assert capsys.readouterr().err == "softkin: error: --timeout: got 0.0; must be more than 0 and at most 1000000000\n"


def test_a_remedy_names_the_option_too(capsys):
    """Where a call takes too long, for example: this port takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"127.0.0.1:{silent.getsockname()[1]}"

        status = cli.main(["healthcheck", "--target", target, "--timeout", "0.3"])

    assert status == 1
    assert capsys.readouterr().err.endswith("allow more time (--timeout)\n")


@pytest.mark.parametrize("content", [b"not a zip", b"PK\x03\x04 broken"])
def test_a_file_that_is_no_npz_is_refused(shared_server, tmp_path, capsys, content):
    """Whatever it holds."""
    path = tmp_path / "x.npz"
    path.write_bytes(content)

    status = cli.main(["score", "--target", shared_server.target, str(path)])

    assert status == 1
    assert "not an .npz file" in capsys.readouterr().err


def test_pickled_objects_are_never_loaded(shared_server, tmp_path, capsys):
    """Loading a pickle runs code."""
    path = tmp_path / "x.npz"
    np.savez(path, x_test=np.array([{"a": 1}], dtype=object))

    status = cli.main(["score", "--target", shared_server.target, str(path)])

    assert status == 1
    assert "not an .npz file of plain arrays" in capsys.readouterr().err


def test_score_without_a_server_exits_1(start, npz, capsys):
    """With the target in the message."""
    running = start(StandIn())
    running.server.stop_now()

    status = cli.main(["score", "--target", running.target, npz, "--timeout", "3"])

    assert status == 1
    assert f"softkin: error: {running.target}: " in capsys.readouterr().err


def test_healthcheck_follows_readiness(start, capsys):
    """Not ready 1, ready 0, stopped 1; when there is no answer, why."""
    running = start(StandIn(), ready=False)
    command = ["healthcheck", "--target", running.target, "--timeout", "5"]

    found = [cli.main(command)]
    running.server.make_ready()
    found.append(cli.main(command))
    running.server.stop_now()
    found.append(cli.main(command))

    captured = capsys.readouterr()
    assert found == [1, 0, 1]
    assert captured.out == f"{running.target} is serving\n"
    not_ready, stopped = captured.err.splitlines()
    assert not_ready == f"softkin: error: {running.target} is not serving"
    assert stopped.startswith(f"softkin: error: {running.target}: ")


def test_inspect_prints_the_manifest(bundle, capsys, monkeypatch):
    """What the detector takes and what stands behind it."""
    monkeypatch.setenv("COLUMNS", "160")

    status = cli.main(["inspect", bundle])

    out = capsys.readouterr().out
    assert status == 0
    for text in ("standin 1", "float32 [rows, 2, 3]", "sneaker [new]", "99 rows, smallest p-value 0.01", "dense"):
        assert text in out
    assert StandIn().digest in out


def test_inspect_json_is_the_manifest_with_its_digest(bundle, capsys):
    """For scripts."""
    status = cli.main(["inspect", bundle, "--json"])

    assert status == 0
    assert json.loads(capsys.readouterr().out) == {**json.loads(manifest().to_json()), "digest": StandIn().digest}


def test_inspect_of_something_else_exits_1(tmp_path, capsys):
    """A directory without a manifest is no bundle."""
    status = cli.main(["inspect", str(tmp_path)])

    assert status == 1
    assert "a bundle is a directory with a manifest.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["score", "x.npz"], "arguments are required: --target"),
        (["score", "--target", "a:1", "x.npz", "--limit", "0"], "--limit: got 0; must be 1 or more"),
        (["healthcheck", "--target", "a:1", "--port", "1"], "unrecognized arguments: --port 1; --help lists what"),
        (["serve"], "BUNDLE: none given"),
        (["serve", "b", "--port", "70000"], "--port: got '70000'; allowed: 0 to 65535"),
        (
            ["serve", "b", "--guarantee", "most"],
            "--guarantee: got 'most'; allowed: marginal, certified, class_conditio",
        ),
        (["serve", "b", "--confidence", "1"], "--confidence: got '1'; allowed: more than 0 to less than 1"),
        (["serve", "b", "--reflection", "no way"], "--reflection: got 'no way'; allowed: true, false"),
        (["serve", "b", "--tls-cert", "a"], "settings: tls_cert is set without tls_key"),
        (["serve", "b", "--config", "none.toml"], "config: none.toml: cannot be read (No such file or directory)"),
        (["drift"], "arguments are required: --target"),
        (["admin", "list"], "arguments are required: --target"),
        (["score", "--target", "a:1", "x.npz", "--smoothing-seed", "x"], "--smoothing-seed: invalid int value: 'x'"),
        (["serve", "b", "--prot", "1"], "unrecognized arguments: --prot"),
        (["serve", "b", "--device", "tpu"], "--device: got 'tpu'; must be auto, cpu, cuda, cuda:N, or several of"),
    ],
)
def test_wrong_usage_exits_2(capsys, arguments, message):
    """With the command's usage and what is allowed; the flags of `serve` do not push that out of sight."""
    with pytest.raises(SystemExit) as e:
        cli.main(arguments)

    assert e.value.code == 2
    err = capsys.readouterr().err
    command = arguments[0] if arguments and arguments[0] in cli.COMMANDS else "[-h]"
    assert err.startswith(f"usage: softkin {command} ")
    assert message in err
    assert len(err.splitlines()) < 12


def test_serve_fails_with_a_message_when_the_bundle_is_none(tmp_path):
    """Exit status 1, no traceback, ports closed; as a process, because serving sets signal handlers."""
    command = [sys.executable, "-m", "softkin.cli", "serve", str(tmp_path), "--port", "0", "--metrics-port", "0"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"softkin: error: {tmp_path}/manifest.json: cannot be read" in done.stderr


def test_the_help_of_serve_gives_every_default_range_and_variable(capsys):
    """One declaration makes flag, variable and documentation."""
    with pytest.raises(SystemExit) as e:
        cli.main(["serve", "--help"])

    text = " ".join(capsys.readouterr().out.split())
    assert e.value.code == 0
    assert "gRPC port; 0 picks a free one. [allowed: 0 to 65535; default: 50051; env: SOFTKIN_PORT]" in text
    assert "[allowed: more than 0 to less than 1; default: not set; env: SOFTKIN_ALPHA]" in text
