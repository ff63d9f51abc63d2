"""Logging: text or JSON lines on standard error, and one terminal line a request.

A request's line tells what it cost and how it ended. It never holds text of a prompt or an answer.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

_FIELDS = "quire_fields"  # the record's attribute that holds structured fields


class TextFormatter(logging.Formatter):
    """``2026-01-31T12:00:00.123Z INFO quire.request message key=value ...``"""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname} {record.name} {record.getMessage()}{fields}"
        return line + _trace(self, record)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, then the record's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        trace = _trace(self, record)
        if trace:
            line["exception"] = trace.strip()
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(log_format: str, level: int = logging.INFO) -> None:
    """Sends every logger of this process to standard error. ``log_format`` is text or json."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Start and stop are told by us; of what is no HTTP there is a metric, for a client's every
    # malformed line must not become one of the log.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)


def log_fields(logger: logging.Logger, message: str, /, **fields: object) -> None:
    """One line with structured fields; those that are None are left out."""
    given = {name: value for name, value in fields.items() if value is not None}
    logger.info("%s", message, extra={_FIELDS: given})


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = getattr(record, _FIELDS, {})
    return fields if isinstance(fields, dict) else {}


def _time(record: logging.LogRecord) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{whole}.{int(record.msecs):03d}Z"


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return "\n" + formatter.formatException(record.exc_info) if record.exc_info else ""
