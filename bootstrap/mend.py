"""Fixing: in dependency order, long builds beside the rest, and after each fix the same check decides."""

from __future__ import annotations

import dataclasses
import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bootstrap.facts import Facts
from bootstrap.findings import FAIL, WARN, Finding
from bootstrap.journal import Journal, Recorder
from bootstrap.profiles import Profile
from bootstrap.requirements import QUICK, Action, Requirement
from bootstrap.runner import check, waits_for
from bootstrap.workspace import Workspace
from pipeline.errors import Problem, UcllmError
from pipeline.i18n import _

#: Told of each action as it starts, with an empty text, and of each line that an action has to tell.
Say = Callable[[Requirement, "Action | None", str], None]
Confirm = Callable[[Requirement, Sequence[Action]], bool]


@dataclass(frozen=True)
class Mended:
    """What fixing came to: the findings afterwards, what was done, and what was tried and still fails."""

    findings: tuple[Finding, ...]
    actions: tuple[dict[str, Any], ...]
    still_failing: tuple[str, ...]


def mend(
    profile: Profile,
    workspace: Workspace,
    requirements: Sequence[Requirement],
    facts: Facts,
    collect: Callable[[], Facts],
    say: Say,
    *,
    tier: str = QUICK,
    warnings: bool = False,
    confirm: Confirm = lambda _requirement, _actions: True,
) -> Mended:
    """Fix what fails, in order; after each fix the facts are collected again and the same check decides.

    A fix that begins with ``background`` actions starts them and is finished after the others, together with what
    waits for it. ``warnings`` are fixed too where that is asked for. ``confirm`` is asked before each fix. A fix that
    raises :class:`UcllmError` ends the run with it, once the builds beside it have ended; what was done stays done.
    """
    mender = _Mender(profile, workspace, facts, collect, say, tier, (FAIL, WARN) if warnings else (FAIL,), confirm)
    try:
        later = [item for item in requirements if not mender.visit(item, may_wait=True)]
        for item in later:
            mender.visit(item, may_wait=False)
    except Exception as error:
        # An hour's build is not thrown away because another failed: it ends up in the cache.
        others = mender.wait()
        if not others:
            raise
        raise UcllmError.of([problem for one in (error, *others) for problem in _problems(one)]) from error
    ordered = tuple(mender.findings[item.id] for item in requirements)
    return Mended(ordered, tuple(mender.done), tuple(mender.still))


def _problems(error: Exception) -> tuple[Problem, ...]:
    """What went wrong, beside others that went wrong too."""
    if isinstance(error, UcllmError):
        return error.problems
    return (Problem("fix.failed", _("A fix ended with an error."), f"{type(error).__name__}: {error}"),)


@dataclass
class _Mender:
    profile: Profile
    workspace: Workspace
    facts: Facts
    collect: Callable[[], Facts]
    say: Say
    tier: str
    wanted: tuple[str, ...]
    confirm: Confirm
    findings: dict[str, Finding] = field(default_factory=dict)
    done: list[dict[str, Any]] = field(default_factory=list)
    still: list[str] = field(default_factory=list)
    builds: dict[str, _Build] = field(default_factory=dict)
    #: Those that wait for a build, their own or another's.
    waiting: set[str] = field(default_factory=set)

    def visit(self, requirement: Requirement, *, may_wait: bool) -> bool:
        """Check, and fix what fails. False: it, or what it waits for, is being built; visit it again."""
        build = self.builds.pop(requirement.id, None)
        if build is not None:
            build.result()
            self.facts = self.collect()  # those at hand were read while compilers had the machine
        finding = self.findings[requirement.id] = self._check(requirement)
        if may_wait and self.waiting & {*finding.blocked_by}:
            self.waiting.add(requirement.id)
            return False
        if finding.status not in self.wanted or requirement.plan is None:
            return True
        lacking = waits_for(requirement.fix_needs, self.findings)
        if may_wait and self.waiting & {*lacking}:
            self.waiting.add(requirement.id)
            return False
        if lacking:
            why = _("not tried: it needs {ids} first").format(ids=", ".join(lacking))
            self.findings[requirement.id] = dataclasses.replace(finding, evidence=(*finding.evidence, why))
            return True
        if build is not None:  # not planned again: what was built then is what was confirmed, and what is put in place
            self._fix(requirement, build.rest, build.inputs)
            return True
        actions = requirement.plan(self.profile, self.facts, self.workspace)
        if not actions or not self.confirm(requirement, actions):
            return True
        inputs = requirement.inputs(self.profile, self.facts) if requirement.inputs else None
        if may_wait and any(action.background for action in actions):
            self.builds[requirement.id] = _Build(self, requirement, actions, inputs)
            self.waiting.add(requirement.id)
            return False
        self._fix(requirement, actions, inputs)
        return True

    def wait(self) -> list[Exception]:
        """Let the builds that still run come to an end; what went wrong in them."""
        for name, build in self.builds.items():
            if build.thread.is_alive():
                self.say(build.requirement, None, _("waiting for {id}, which is still being built").format(id=name))
            build.thread.join()
        return [build.failure for build in self.builds.values() if build.failure is not None]

    def _check(self, requirement: Requirement) -> Finding:
        return check(requirement, self.profile, self.facts, self.findings, self.tier)

    def _fix(self, requirement: Requirement, actions: Sequence[Action], made_from: Mapping[str, str] | None) -> None:
        journal = Journal(self.workspace)
        fix = journal.next_fix()
        self.done += act(journal, fix, requirement, actions, self.say)
        if made_from is not None:  # at once: killed after this, it must not pass for made by hand
            journal.write(fix=fix, requirement=requirement.id, status="made", inputs=dict(made_from))
        self.facts = self.collect()
        finding = self.findings[requirement.id] = self._check(requirement)
        if finding.status == FAIL:
            self.still.append(requirement.id)
            kept = [
                _("it came from the cache; if it stays so, `{command}` lets it be made anew").format(
                    command=shlex.join(["rm", "-r", action.kept])
                )
                for action in actions
                if action.kept
            ]
            self.findings[requirement.id] = dataclasses.replace(finding, evidence=(*finding.evidence, *kept))


class _Build:
    """Actions that run beside the rest. Daemons: an interrupted tool ends at once, and takes its children with it."""

    def __init__(
        self, mender: _Mender, requirement: Requirement, actions: Sequence[Action], inputs: Mapping[str, str] | None
    ) -> None:
        self.requirement = requirement
        #: What is left to do after them, and what it is all made from.
        self.rest = [action for action in actions if not action.background]
        self.inputs = inputs
        self.failure: Exception | None = None
        journal = Journal(mender.workspace)
        fix = journal.next_fix()

        def work() -> None:
            try:
                first = [action for action in actions if action.background]
                mender.done += act(journal, fix, requirement, first, mender.say)
            except Exception as error:  # noqa: BLE001  it is raised where the result is asked for
                self.failure = error

        self.thread = threading.Thread(target=work, name=f"build-{requirement.id}", daemon=True)
        # Its number must be in the journal before another fix asks for the next one.
        journal.write(fix=fix, requirement=requirement.id, status="background")
        self.thread.start()

    def result(self) -> None:
        """Wait for the end; raise what went wrong."""
        self.thread.join()
        if self.failure is not None:
            raise self.failure


def act(
    journal: Journal, fix: int, requirement: Requirement, actions: Sequence[Action], say: Say
) -> list[dict[str, Any]]:
    """Do the actions of one fix, each in the journal before it starts and after it ended."""
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


def _teller(say: Say, requirement: Requirement, action: Action) -> Callable[[str], None]:
    return lambda text: say(requirement, action, text)
