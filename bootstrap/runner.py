"""The one runner of ``setup`` and ``doctor``: check, fix in dependency order, and the second check decides."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bootstrap.facts import Facts
from bootstrap.findings import BLOCKED, FAIL, UNKNOWN, WARN, Finding
from bootstrap.profiles import Profile
from bootstrap.requirements import Action, Requirement, Say
from bootstrap.workspace import Workspace
from pipeline.errors import UcllmError
from pipeline.i18n import _


def diagnose(profile: Profile, facts: Facts, requirements: Sequence[Requirement]) -> list[Finding]:
    """Run every check. One that raises becomes an ``unknown`` finding; what depends on a failure is ``blocked``."""
    findings: dict[str, Finding] = {}
    for requirement in requirements:
        findings[requirement.id] = _check(requirement, profile, facts, findings)
    return list(findings.values())


def _check(requirement: Requirement, profile: Profile, facts: Facts, before: dict[str, Finding]) -> Finding:
    blockers = [
        item for item in requirement.needs if item in before and before[item].status in (FAIL, BLOCKED, UNKNOWN)
    ]
    if blockers:
        summary = _("waits for {ids}").format(ids=", ".join(blockers))
        return Finding(requirement.id, BLOCKED, summary, blocked_by=tuple(blockers))
    began = time.perf_counter()
    try:
        finding = requirement.check(profile, facts)
    except Exception as error:  # noqa: BLE001  a check that crashes is a finding, not the end of the others
        finding = Finding(requirement.id, UNKNOWN, _("The check itself failed."), (f"{type(error).__name__}: {error}",))
    took = round((time.perf_counter() - began) * 1000, 2)
    return dataclasses.replace(finding, took_ms=took)


def exit_code(findings: Sequence[Finding], *, strict: bool = False) -> int:
    """0 fine, 1 a required check fails (beats 3), 3 one could not be made; ``strict`` turns warnings into 1."""
    statuses = {finding.status for finding in findings}
    if FAIL in statuses or (strict and WARN in statuses):
        return 1
    return 3 if UNKNOWN in statuses else 0


@dataclass(frozen=True)
class Mended:
    """What fixing came to: the findings afterwards, what was done, and what was tried and still fails."""

    findings: tuple[Finding, ...]
    actions: tuple[dict[str, Any], ...]
    still_failing: tuple[str, ...]


@dataclass
class Journal:
    """Append-only record of actions, one JSON object a line, on disk before the next action starts."""

    workspace: Workspace

    def write(self, **entry: Any) -> None:
        """Append one entry, stamped."""
        path = self.workspace.state / "journal.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **entry}, ensure_ascii=False)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
            stream.flush()
            os.fsync(stream.fileno())


def plans(
    profile: Profile, facts: Facts, requirements: Sequence[Requirement], workspace: Workspace
) -> list[tuple[Requirement, list[Action]]]:
    """What fixing would do now. What a blocked requirement will need is only known after what it waits for."""
    failing = {item.id for item in diagnose(profile, facts, requirements) if item.status in (FAIL, BLOCKED)}
    return [(item, item.plan(profile, facts, workspace)) for item in requirements if item.id in failing and item.plan]


def mend(
    profile: Profile,
    workspace: Workspace,
    requirements: Sequence[Requirement],
    facts: Facts,
    collect: Callable[[], Facts],
    say: Callable[[Requirement, Action | None, str], None],
) -> Mended:
    """Fix what fails, in order; after each fix the facts are collected again and the same check decides.

    ``say`` is told of each action as it starts and of each line an action has to tell. A fix that raises
    :class:`UcllmError` ends the run with it; what was done before stays done.
    """
    journal = Journal(workspace)
    done: list[dict[str, Any]] = []
    still: list[str] = []
    findings: dict[str, Finding] = {}
    for requirement in requirements:
        finding = _check(requirement, profile, facts, findings)
        if finding.status == FAIL and requirement.plan is not None:
            actions = requirement.plan(profile, facts, workspace)
            for action in actions:
                say(requirement, action, "")
                entry = {"requirement": requirement.id, "action": action.text, "commands": list(action.commands)}
                journal.write(**entry, status="started")
                began = time.monotonic()
                try:
                    action.act(_teller(say, requirement, action))
                except (UcllmError, OSError) as error:
                    message = error.problems[0].message if isinstance(error, UcllmError) else str(error)
                    journal.write(**entry, status="failed", error=message[:2000])
                    raise
                except KeyboardInterrupt:
                    journal.write(**entry, status="interrupted")
                    raise
                seconds = round(time.monotonic() - began, 2)
                journal.write(**entry, status="done", seconds=seconds)
                done.append({**entry, "seconds": seconds})
            if actions:
                facts = collect()
                finding = _check(requirement, profile, facts, findings)
                if finding.status == FAIL:
                    still.append(requirement.id)
        findings[requirement.id] = finding
    return Mended(tuple(findings.values()), tuple(done), tuple(still))


def _teller(say: Callable[[Requirement, Action | None, str], None], requirement: Requirement, action: Action) -> Say:
    return lambda text: say(requirement, action, text)
