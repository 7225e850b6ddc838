"""The one runner of ``setup`` and ``doctor``: every check, and what fixing would do. :mod:`bootstrap.mend` does it."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bootstrap.facts import Facts
from bootstrap.findings import BAD, BLOCKED, FAIL, OK, SKIPPED, UNKNOWN, WARN, Finding, Remedy, fail, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import QUICK, TIERS, Action, Requirement
from bootstrap.workspace import Workspace
from pipeline.i18n import _

#: A check is a comparison of values: one that takes longer than this, in seconds, hangs.
CHECK_TIMEOUT_S = 5.0


def diagnose(profile: Profile, facts: Facts, requirements: Sequence[Requirement], tier: str = QUICK) -> list[Finding]:
    """Run every check. One that raises or hangs becomes an ``unknown`` finding; what depends on a failure is
    ``blocked``; what belongs to a deeper ``tier`` is ``skipped``.
    """
    findings: dict[str, Finding] = {}
    for requirement in requirements:
        findings[requirement.id] = check(requirement, profile, facts, findings, tier)
    return list(findings.values())


def check(
    requirement: Requirement,
    profile: Profile,
    facts: Facts,
    before: Mapping[str, Finding],
    tier: str,
) -> Finding:
    """One requirement's finding, given those of the requirements before it."""
    if TIERS.index(requirement.tier) > TIERS.index(tier):
        return Finding(requirement.id, SKIPPED, _("only with --{tier}").format(tier=requirement.tier))
    blockers = waits_for(requirement.needs, before)
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
            finding = requirement.check(profile, facts)
            compare = finding.status in (OK, WARN)
            answer.append(_as_made(requirement, profile, facts, finding) if compare else finding)
        except Exception as error:  # noqa: BLE001  a check that crashes is a finding, not the end of the others
            answer.append(unknown(_("The check itself failed."), (f"{type(error).__name__}: {error}",)))

    thread = threading.Thread(target=work, name=requirement.id, daemon=True)
    thread.start()
    thread.join(CHECK_TIMEOUT_S)
    if answer:
        return answer[0]
    return unknown(_("The check did not end in {seconds} s.").format(seconds=round(CHECK_TIMEOUT_S)))


def _as_made(requirement: Requirement, profile: Profile, facts: Facts, finding: Finding) -> Finding:
    """What looks right was made from what holds now; else it fails, and says which input changed.

    Only what setup made is in the journal; what was made by hand is taken as it is.
    """
    if requirement.inputs is None:
        return finding
    was, now = facts.journal.inputs.get(requirement.id, {}), requirement.inputs(profile, facts)
    changed = [
        f"{name}: {was[name]} → {now[name]}" for name in now if was.get(name) and now[name] and now[name] != was[name]
    ]
    if not changed:
        return finding
    remedy = Remedy(_("Make it again from what holds now."), automatic=True) if requirement.plan else None
    return fail(_("What it was made from has changed."), (*finding.evidence, *changed), remedy)


def waits_for(needs: Sequence[str], before: Mapping[str, Finding]) -> list[str]:
    """Those of ``needs`` that do not hold, or of which it is not known."""
    return [item for item in needs if item in before and before[item].status in BAD]


def exit_code(findings: Sequence[Finding], *, strict: bool = False) -> int:
    """0 fine, 1 a required check fails (beats 3), 3 one could not be made; ``strict`` turns warnings into 1."""
    statuses = {finding.status for finding in findings}
    if FAIL in statuses or (strict and WARN in statuses):
        return 1
    return 3 if UNKNOWN in statuses else 0


@dataclass(frozen=True)
class Planned:
    """What would be done for one requirement; ``waits_for`` are failing ones that nothing here repairs."""

    requirement: Requirement
    actions: tuple[Action, ...]
    waits_for: tuple[str, ...] = ()


def plans(
    profile: Profile,
    facts: Facts,
    requirements: Sequence[Requirement],
    workspace: Workspace,
    *,
    tier: str = QUICK,
    warnings: bool = False,
) -> list[Planned]:
    """What :func:`bootstrap.mend.mend` would do now, and what it could not do before something else is repaired.

    What a blocked requirement will need is only known after what it waits for.
    """
    wanted = (FAIL, WARN, BLOCKED) if warnings else (FAIL, BLOCKED)
    planned: list[Planned] = []
    stuck: dict[str, tuple[str, ...]] = {}  # what stays as it is, and because of what in the end
    for requirement, finding in zip(requirements, diagnose(profile, facts, requirements, tier), strict=True):
        roots = [root for item in (*requirement.needs, *requirement.fix_needs) for root in stuck.get(item, ())]
        actions = requirement.plan(profile, facts, workspace) if requirement.plan and finding.status in wanted else []
        if actions:
            planned.append(Planned(requirement, tuple(actions), tuple(dict.fromkeys(roots))))
        if finding.status in BAD and (roots or not actions):
            stuck[requirement.id] = tuple(dict.fromkeys(roots)) or (requirement.id,)
    return planned
