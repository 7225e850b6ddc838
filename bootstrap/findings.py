"""What a check returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

OK, WARN, FAIL, BLOCKED, UNKNOWN, SKIPPED = "ok", "warn", "fail", "blocked", "unknown", "skipped"
#: What must not be built upon.
BAD = (FAIL, BLOCKED, UNKNOWN)


@dataclass(frozen=True)
class Remedy:
    """What helps. ``commands`` are exact; ``automatic`` is true only for what ``doctor --fix`` does itself, safely.

    ``needs`` says what the user must have for it: ``root``, ``network``, ``restart``, ``shell``.
    """

    text: str
    commands: tuple[str, ...] = ()
    automatic: bool = False
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    ``status`` is ``ok``, ``warn``, ``fail``, ``blocked`` (a requirement it depends on failed), ``unknown`` (required,
    but could not be checked) or ``skipped``. ``evidence`` says what was looked for, where, and what was found.
    """

    id: str
    status: str
    summary: str
    evidence: tuple[str, ...] = ()
    remedy: Remedy | None = None
    blocked_by: tuple[str, ...] = ()
    took_ms: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The finding with the keys of DESIGN section 3."""
        return dataclasses.asdict(self)


# What checks return, each in one line. The id is left to the runner, which knows whose check it called.


def ok(summary: str, *evidence: str) -> Finding:
    """All is well; ``summary`` says what was found."""
    return Finding("", OK, summary, evidence)


def warn(summary: str, evidence: Sequence[str], remedy: Remedy | None = None) -> Finding:
    """It works, but a user should know."""
    return Finding("", WARN, summary, tuple(evidence), remedy)


def fail(summary: str, evidence: Sequence[str], remedy: Remedy | None = None) -> Finding:
    """What the profile needs is not so."""
    return Finding("", FAIL, summary, tuple(evidence), remedy)


def unknown(summary: str, evidence: Sequence[str] = (), remedy: Remedy | None = None) -> Finding:
    """It is needed, and could not be checked; ``summary`` says why."""
    return Finding("", UNKNOWN, summary, tuple(evidence), remedy)


def skipped(summary: str, *evidence: str) -> Finding:
    """It does not apply here; ``summary`` says why."""
    return Finding("", SKIPPED, summary, evidence)
