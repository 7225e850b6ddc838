"""What a check returns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

OK, WARN, FAIL, BLOCKED, UNKNOWN, SKIPPED = "ok", "warn", "fail", "blocked", "unknown", "skipped"


@dataclass(frozen=True)
class Remedy:
    """What helps. ``commands`` are exact; ``automatic`` is true only for what ``doctor --fix`` does itself, safely."""

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
