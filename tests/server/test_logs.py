"""Log lines: text or JSON, with the caller's own id for a call."""

from __future__ import annotations

import io
import json
import logging
import re
from pathlib import Path

import grpc
import pytest
from google.rpc.error_details_pb2 import RequestInfo
from google.rpc.status_pb2 import Status

import standin_bundles
from softkin.converters import array_to_tensor
from softkin.logs import JsonFormatter, LogLine, TextFormatter, log, log_line
from softkin.statuses import STATUS_DETAILS
from softkin.v1 import outlier_pb2 as pb
from standin import StandIn


@pytest.fixture
def lines():
    """What is logged as JSON, at every level."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)


def test_a_line_is_text_and_knows_its_fields():
    """Values with blanks are quoted in text; JSON keeps their types."""
    line = log_line("loaded", rows=3, path="a b")

    assert line == 'event=loaded rows=3 path="a b"'
    assert isinstance(line, LogLine)
    assert line.fields == {"event": "loaded", "rows": 3, "path": "a b"}


def test_every_call_has_a_line_with_its_callers_id(start, rows, lines):
    """At level debug. An id that could forge a line is left out."""
    running = start(StandIn())
    request = pb.ScoreRequest(inputs=array_to_tensor(rows(1)))
    for request_id in ("order-66", 'x" level=ERROR', ""):
        running.stub.Score(request, metadata=(("x-request-id", request_id),), timeout=20)

    def calls():
        return [line for line in lines() if line.get("event") == "call"]

    running.until(lambda: len(calls()) == 3)
    assert sorted(c["request_id"] for c in calls()) == ["", "", "order-66"]
    assert {(c["method"], c["code"], c["level"]) for c in calls()} == {("Score", "OK", "DEBUG")}


def test_a_fault_is_logged_with_both_ids_and_its_trace(start, rows, lines):
    """The caller is told the log id; the line has the caller's own id too."""
    running = start(StandIn(failure=ValueError("secret")))
    request = pb.ScoreRequest(inputs=array_to_tensor(rows(1)))

    with pytest.raises(grpc.RpcError) as e:
        running.stub.Score(request, metadata=(("x-request-id", "order-67"),), timeout=20)

    told = re.search(r"log id (\w+)", e.value.details())[1]
    [detail] = Status.FromString(dict(e.value.trailing_metadata())[STATUS_DETAILS]).details
    assert detail.Unpack(info := RequestInfo())
    assert info.request_id == told
    (fault,) = [line for line in lines() if line.get("event") == "error"]
    assert (fault["log_id"], fault["request_id"], fault["code"]) == (told, "order-67", "INTERNAL")
    assert "ValueError: secret" in fault["exception"]


def test_a_fault_in_a_stream_is_logged_with_both_ids_too(start, rows, lines):
    """The caller's id is that of the stream."""
    running = start(StandIn(failure=ValueError("secret")))
    message = pb.ScoreStreamRequest(request=pb.ScoreRequest(inputs=array_to_tensor(rows(1))))

    responses = running.stub.ScoreStream(iter([message]), metadata=(("x-request-id", "order-68"),), timeout=20)
    [answer] = [a for response in responses for a in response.answers]

    told = re.search(r"log id (\w+)", answer.error.message)[1]
    (fault,) = [line for line in lines() if line.get("event") == "error"]
    assert (fault["log_id"], fault["request_id"], fault["method"]) == (told, "order-68", "ScoreStream")


def test_a_reload_leaves_four_kinds_of_lines_in_the_log(start, tmp_path, loading, caplog):
    """How many paths are read, what comes, what goes, and what became of each path."""
    old = standin_bundles.write(tmp_path / "a", "1")
    standin_bundles.write(tmp_path / "b", "2")
    running = start(load=loading, bundles=(tmp_path / "a", tmp_path / "b"))
    new = standin_bundles.write(tmp_path / "a", "3")

    with caplog.at_level(logging.INFO):
        caplog.clear()
        running.server.reloader.reload()

    assert [record.getMessage() for record in caplog.records] == [
        "event=reloading bundles=2",
        f"event=loaded detector=standin version=3 digest={new[:12]} device=cpu device_asked=auto",
        f"event=unloaded detector=standin version=1 digest={old[:12]}",
        "event=reloaded loaded=1 unchanged=1 failed=0",
    ]


def test_lines_of_other_libraries_are_json_too(lines):
    """Their text is the message."""
    log.warning("plain %s", "text")

    assert [(line["level"], line["message"]) for line in lines()] == [("WARNING", "plain text")]


def test_paths_and_errors_are_text_in_json(lines):
    """Lines name files and what went wrong with them: one that JSON could not hold would be lost."""
    log.warning(log_line("kept", file=Path("/etc/tokens"), error=ValueError("no token")))

    [line] = lines()
    assert (line["event"], line["file"], line["error"]) == ("kept", "/etc/tokens", "no token")


def test_an_error_without_words_has_its_name(lines):
    """As text and in JSON: nothing after the equals sign would tell nobody what went wrong."""
    log.error(log_line("reload_failed", error=MemoryError()))

    [line] = lines()
    assert line["error"] == "MemoryError()"
    assert log_line("reload_failed", error=MemoryError()) == "event=reload_failed error=MemoryError()"


def test_no_value_begins_a_line_of_its_own():
    """A path may hold any character; a log line is one line."""
    assert log_line("reload_failed", path="a\nevent=serving", error="b\tc") == (
        r'event=reload_failed path="a\nevent=serving" error="b\tc"'
    )


def test_in_text_lines_of_other_libraries_are_a_message():
    """So that every line is pairs."""
    formatter = TextFormatter()
    for text, expected in {"one": "message=one", "two words": 'message="two words"'}.items():
        record = logging.LogRecord("grpc", logging.WARNING, "", 0, text, (), None)
        assert formatter.format(record).endswith(f"level=WARNING {expected}")
    record = logging.LogRecord("softkin", logging.INFO, "", 0, log_line("stopped", abandoned_requests=0), (), None)
    assert formatter.format(record).endswith("level=INFO event=stopped abandoned_requests=0")
