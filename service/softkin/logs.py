"""Log lines: an event and its fields, as text of key=value pairs or as JSON."""

from __future__ import annotations

import json
import logging
from typing import Literal

log = logging.getLogger("softkin.server")


class LogLine(str):
    """A line of text that remembers the fields it was made of."""

    fields: dict[str, object]


def log_line(event: str, **fields: object) -> LogLine:
    """One log line of key=value pairs; values with blanks, or with what would end the line, are quoted.

    Of an exception that says nothing, as MemoryError, the line has the name.
    """
    named = {k: repr(v) if isinstance(v, Exception) and not str(v) else v for k, v in fields.items()}
    pairs = {"event": event, **named}
    line = LogLine(" ".join(f"{k}={_quoted(str(v))}" for k, v in pairs.items()))
    line.fields = pairs
    return line


def _quoted(text: str) -> str:
    return json.dumps(text) if " " in text or not text.isprintable() else text


class TextFormatter(logging.Formatter):
    """Pairs of time, level and the fields, or `message` for lines that have none; a traceback follows its line."""

    def __init__(self) -> None:
        super().__init__("time=%(asctime)s level=%(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, logging's own name
        """The line, without its traceback."""
        if not isinstance(record.msg, LogLine):
            record.message = f"message={_quoted(record.message)}"
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, and the fields; `message` for lines that have none."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields = record.msg.fields if isinstance(record.msg, LogLine) else {"message": record.getMessage()}
        line = {"time": self.formatTime(record), "level": record.levelname, "logger": record.name, **fields}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: str, form: Literal["text", "json"]) -> None:
    """Send the process's log lines of at least this level to standard error, in this form."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
