"""What a stage process tells the tool while it runs: one JSON object a line, on a file descriptor of its own.

Standard output and error of the process go to the run's log, where libraries may print what they like.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from pipeline.errors import UcllmError

#: The environment variable that names the descriptor.
EVENTS_FD = "UCLLM_EVENTS_FD"


class Reporter:
    """Writes events. Without the tool on the other side (a stage started by hand) they go to standard error."""

    def __init__(self) -> None:
        descriptor = os.environ.get(EVENTS_FD)
        self._stream = os.fdopen(int(descriptor), "w", encoding="utf-8") if descriptor else sys.stderr
        self._last = 0.0

    def _send(self, **event: Any) -> None:
        self._stream.write(json.dumps(event, ensure_ascii=False) + "\n")
        self._stream.flush()

    def progress(self, done: float, total: float, unit: str, **metrics: float) -> None:
        """``done`` of ``total`` ``unit``s. Sent at most ten times a second, and always at the end."""
        now = time.monotonic()
        if done >= total or now - self._last >= 0.1:
            self._last = now
            self._send(event="progress", done=done, total=total, unit=unit, metrics=metrics)

    def stopping(self, seconds: float) -> None:
        """This process handles a request to stop itself, and may take so long to save what it has."""
        self._send(event="stopping", seconds=seconds)

    def note(self, text: str) -> None:
        """One line for the user: a choice that was made, and why."""
        self._send(event="note", text=text)

    def done(self, metrics: dict[str, Any]) -> None:
        """The stage has finished and verified its work."""
        self._send(event="done", metrics=metrics)

    def error(self, error: UcllmError) -> None:
        """The stage has failed in a way it can explain."""
        problems = [[item.code, item.what, item.why, item.hint] for item in error.problems]
        self._send(event="error", problems=problems)
