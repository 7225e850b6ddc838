"""The one runner of ``setup`` and ``doctor``: check, fix in dependency order, and the second check decides."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bootstrap.facts import Facts
from bootstrap.findings import BLOCKED, FAIL, SKIPPED, UNKNOWN, WARN, Finding, unknown
from bootstrap.journal import Journal, Recorder
from bootstrap.profiles import Profile
from bootstrap.requirements import QUICK, TIERS, Action, Requirement
from bootstrap.workspace import Workspace
from pipeline.errors import UcllmError
from pipeline.i18n import _

#: A check is a comparison of values: one that takes longer than this, in seconds, hangs.
CHECK_TIMEOUT_S = 5.0


def diagnose(profile: Profile, facts: Facts, requirements: Sequence[Requirement], tier: str = QUICK) -> list[Finding]:
    """Run every check. One that raises or hangs becomes an ``unknown`` finding; what depends on a failure is
    ``blocked``; what belongs to a deeper ``tier`` is ``skipped``.
    """
    findings: dict[str, Finding] = {}
    for requirement in requirements:
        findings[requirement.id] = _check(requirement, profile, facts, findings, tier)
    return list(findings.values())


def _check(requirement: Requirement, profile: Profile, facts: Facts, before: dict[str, Finding], tier: str) -> Finding:
    if TIERS.index(requirement.tier) > TIERS.index(tier):
        return Finding(requirement.id, SKIPPED, _("only with --{tier}").format(tier=requirement.tier))
    blockers = [
        item for item in requirement.needs if item in before and before[item].status in (FAIL, BLOCKED, UNKNOWN)
    ]
    if blockers:
        summary = _("waits for {ids}").format(ids=", ".join(blockers))
        return Finding(requirement.id, BLOCKED, summary, blocked_by=tuple(blockers))
    lost = [name for name in requirement.reads if name in facts.errors]
    absent = [name for name in requirement.reads if name not in facts.collected and name not in facts.errors]
    began = time.perf_counter()
    if lost:
        reasons = tuple(f"{name}: {facts.errors[name]}" for name in lost)
        finding = unknown(_("The facts for it could not be collected."), reasons)
    elif absent:
        finding = unknown(_("The facts hold nothing about it."), tuple(absent))
    else:
        finding = _within_limit(requirement, profile, facts)
    status = finding.status
    if requirement.id in profile.optional:
        # Only what a profile needs can fail.
        status = {FAIL: WARN, UNKNOWN: SKIPPED}.get(status, status)
    took = round((time.perf_counter() - began) * 1000, 2)
    return dataclasses.replace(finding, id=requirement.id, status=status, took_ms=took)


def _within_limit(requirement: Requirement, profile: Profile, facts: Facts) -> Finding:
    """The check's finding; ``unknown`` if it raises or does not come to an end."""
    answer: list[Finding] = []

    def work() -> None:
        try:
            answer.append(requirement.check(profile, facts))
        except Exception as error:  # noqa: BLE001  a check that crashes is a finding, not the end of the others
            answer.append(unknown(_("The check itself failed."), (f"{type(error).__name__}: {error}",)))

    thread = threading.Thread(target=work, name=requirement.id, daemon=True)
    thread.start()
    thread.join(CHECK_TIMEOUT_S)
    if answer:
        return answer[0]
    return unknown(_("The check did not end in {seconds} s.").format(seconds=round(CHECK_TIMEOUT_S)))


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


def plans(
    profile: Profile,
    facts: Facts,
    requirements: Sequence[Requirement],
    workspace: Workspace,
    *,
    tier: str = QUICK,
    warnings: bool = False,
) -> list[tuple[Requirement, list[Action]]]:
    """What :func:`mend` would do now. What a blocked requirement will need is only known after what it waits for."""
    found = diagnose(profile, facts, requirements, tier)
    failing = {item.id for item in found if item.status in ((FAIL, WARN, BLOCKED) if warnings else (FAIL, BLOCKED))}
    planned = [
        (item, item.plan(profile, facts, workspace)) for item in requirements if item.id in failing and item.plan
    ]
    return [(requirement, actions) for requirement, actions in planned if actions]


def mend(
    profile: Profile,
    workspace: Workspace,
    requirements: Sequence[Requirement],
    facts: Facts,
    collect: Callable[[], Facts],
    say: Callable[[Requirement, Action | None, str], None],
    *,
    tier: str = QUICK,
    warnings: bool = False,
    confirm: Callable[[Requirement, Sequence[Action]], bool] = lambda _requirement, _actions: True,
) -> Mended:
    """Fix what fails, in order; after each fix the facts are collected again and the same check decides.

    ``warnings`` are fixed too where that is asked for. ``confirm`` is asked before each fix. ``say`` is told of each
    action as it starts and of each line an action has to tell. A fix that raises :class:`UcllmError` ends the run with
    it; what was done before stays done.
    """
    journal = Journal(workspace)
    done: list[dict[str, Any]] = []
    still: list[str] = []
    findings: dict[str, Finding] = {}
    wanted = (FAIL, WARN) if warnings else (FAIL,)
    for requirement in requirements:
        finding = _check(requirement, profile, facts, findings, tier)
        if finding.status in wanted and requirement.plan is not None:
            actions = requirement.plan(profile, facts, workspace)
            if actions and confirm(requirement, actions):
                done += _act(journal, requirement, actions, say)
                facts = collect()
                finding = _check(requirement, profile, facts, findings, tier)
                if finding.status == FAIL:
                    still.append(requirement.id)
        findings[requirement.id] = finding
    return Mended(tuple(findings.values()), tuple(done), tuple(still))


def _act(
    journal: Journal,
    requirement: Requirement,
    actions: Sequence[Action],
    say: Callable[[Requirement, Action | None, str], None],
) -> list[dict[str, Any]]:
    """Do the actions of one fix, each in the journal before it starts and after it ended."""
    fix = journal.next_fix()
    done = []
    for action in actions:
        say(requirement, action, "")
        entry = {
            "fix": fix,
            "requirement": requirement.id,
            "action": action.text,
            "commands": list(action.commands),
        }
        journal.write(**entry, status="started")
        began = time.monotonic()
        try:
            action.act(Recorder(journal, fix, requirement.id, _teller(say, requirement, action)))
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
    return done


def _teller(
    say: Callable[[Requirement, Action | None, str], None], requirement: Requirement, action: Action
) -> Callable[[str], None]:
    return lambda text: say(requirement, action, text)
