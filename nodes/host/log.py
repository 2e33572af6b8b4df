"""The host's log: an object a line, whole after a kill, rotated; and counts of what it says."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from datetime import datetime, timezone
from logging.handlers import RotatingFileHandler
from typing import Any, Mapping

from ..encoders.flag import LOG

MAX_BYTES, KEPT = 10_000_000, 5
"""A file of a log, and how many older ones are kept beside it."""


MOST, LONGEST = 50, 2_000
"""Texts of a graph that are logged, and how much of each: else a client could turn the log over with a few graphs."""


class JsonLines(logging.Formatter):
    """A record's `event`, as one line of JSON; a record without one is its message."""

    def format(self, record: logging.LogRecord) -> str:
        event = getattr(record, "event", None) or {"event": "message", "message": record.getMessage()}
        time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        return json.dumps({"time": time, **event}, ensure_ascii=False, default=str)


class Counts(logging.Handler):
    """How often each event was, by what was done about it."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.of: Counter[tuple[str, str]] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        if event:
            self.of[str(event["event"]), str(event.get("action", ""))] += 1

    def as_lines(self) -> str:
        """In the text format that Prometheus reads."""
        lines = [f'safety_directions_{kind}_total{{action="{action}"}} {n}' for (kind, action), n in sorted(self.of.items())]
        return "\n".join(lines) + "\n"


def opened(path: str) -> logging.Handler:
    """A handler that appends to `path`. Each line is flushed when it is written.

    Raises:
        OSError: it can't be written to.
    """
    handler = RotatingFileHandler(path, maxBytes=MAX_BYTES, backupCount=KEPT, encoding="utf-8")
    handler.setFormatter(JsonLines())
    return handler


def say(words: str, **event: Any) -> None:
    """Log an event: words for people, the object for the file."""
    LOG.info("%s", words, extra={"event": event})


def texts(graph: Mapping[str, Any], how: str) -> dict[str, list[str]]:
    """The texts of a queued graph as a log may hold them: none, their hashes, or themselves."""
    if how == "leave out":
        return {}
    inputs = (node.get("inputs") for node in graph.values() if isinstance(node, dict))
    values = (value for one in inputs if isinstance(one, dict) for value in one.values())
    found = [value for value in values if isinstance(value, str) and " " in value][:MOST]
    if how == "hash":
        return {"sha256": [hashlib.sha256(text.encode()).hexdigest() for text in found]}
    return {"texts": [text[:LONGEST] for text in found]}
