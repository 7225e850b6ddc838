"""What setup, doctor and the gate of training have in common: a profile, a workspace, its facts and requirements."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bootstrap import host, mend, profiles, requirements, runner
from bootstrap import workspace as workspaces
from bootstrap.cli.base import Chosen, Report, choose_profile, finish
from bootstrap.facts import Facts
from bootstrap.facts.collect import TIMEOUTS_S, collect
from bootstrap.findings import BLOCKED, OK, SKIPPED, UNKNOWN, Finding
from bootstrap.profiles import Profile
from bootstrap.requirements import QUICK, TIERS, Action, Requirement
from bootstrap.workspace import Workspace
from pipeline.errors import Problem, UcllmError, did_you_mean
from pipeline.i18n import _

if TYPE_CHECKING:
    from bootstrap.facts.nodes import Job
    from pipeline.config import Config


@dataclass(frozen=True)
class Work:
    """Everything a command needs to check or repair.

    ``only`` are the checks to show (all if empty), ``skip`` those that are looked at for the sake of what needs them:
    they are neither shown nor repaired. ``job`` are the nodes that are looked at, where some are named.
    """

    command: str
    workspace: Workspace
    profile: Profile
    chosen: Chosen
    facts: Facts
    requirements: list[Requirement]
    tier: str = QUICK
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    job: Job | None = None

    def data(self, findings: Sequence[Finding]) -> dict[str, Any]:
        """The report's data."""
        return {
            "workspace": str(self.workspace.root),
            "mirror": host.without_logins(self.workspace.mirror),
            "profile": {"name": self.profile.name, "reason": self.chosen.reason},
            "requirements": [describe(item, self.profile) for item in self.requirements if item.id not in self.skip],
            "findings": [finding.as_json() for finding in findings],
        }

    def findings(self) -> list[Finding]:
        """Every check's outcome on the facts at hand, as far as it is to be shown."""
        return self.shown(runner.diagnose(self.profile, self.facts, self.requirements, self.tier))

    def shown(self, findings: Sequence[Finding]) -> list[Finding]:
        """What the user asked for, and what it waits for; what waits only for what is skipped could not be checked."""
        hidden = {item.id: item for item in findings if item.id in self.skip}
        told = [self._told(item, hidden) for item in findings if item.id not in hidden]
        if not self.only:
            return told
        blocking = {blocker for item in told if item.status == BLOCKED for blocker in item.blocked_by}
        return [item for item in told if item.id in self.only or (item.id in blocking and item.status != OK)]

    def _told(self, finding: Finding, hidden: Mapping[str, Finding]) -> Finding:
        if finding.status != BLOCKED or not set(finding.blocked_by) <= set(hidden):
            return finding
        return dataclasses.replace(
            finding,
            status=SKIPPED if finding.id in self.profile.optional else UNKNOWN,
            summary=_("It needs {ids}, left out by --skip.").format(ids=", ".join(finding.blocked_by)),
            evidence=tuple(f"{item}: {hidden[item].summary}" for item in finding.blocked_by),
            blocked_by=(),
        )

    def mendable(self) -> list[Requirement]:
        """The requirements for the runner: what is skipped is looked at, and left as it is."""
        return [dataclasses.replace(item, plan=None) if item.id in self.skip else item for item in self.requirements]

    def collect(self) -> Facts:
        """The facts as they are now."""
        return collect(self.profile, self.workspace, sections_for(self.requirements, self.tier), job=self.job)

    def plan(self, *, warnings: bool = False) -> list[dict[str, Any]]:
        """What fixing would do now, as JSON."""
        planned = runner.plans(
            self.profile, self.facts, self.mendable(), self.workspace, tier=self.tier, warnings=warnings
        )
        return [
            {
                "requirement": item.requirement.id,
                "action": action.text,
                "commands": list(action.commands),
                "waits_for": list(item.waits_for),
            }
            for item in planned
            if not {*self.skip} & {*item.waits_for}
            for action in item.actions
        ]


def describe(requirement: Requirement, profile: Profile) -> dict[str, Any]:
    """A requirement as JSON: what must be true, why, and where in the guide it comes from."""
    return {
        "id": requirement.id,
        "title": _(requirement.title),
        "why": _(requirement.why),
        "step": requirement.step,
        "tier": requirement.tier,
        "optional": requirement.id in profile.optional,
        "needs": [item for item in requirement.needs if item in profile.requirements],
        "fixable": requirement.plan is not None,
    }


@dataclass(frozen=True)
class Choice:
    """Which workspace and which profile, before anything is read of the machine."""

    workspace: Workspace
    profile: Profile
    chosen: Chosen

    def with_nodes(self) -> Choice:
        """The same, asking also for what must be true of a job's nodes together."""
        wanted = (*self.profile.requirements, *requirements.NODES)
        return dataclasses.replace(self, profile=dataclasses.replace(self.profile, requirements=wanted))

    def announce(self) -> None:
        """Print the first line of a report."""
        text = _("Profile {profile} ({reason}), workspace {workspace}")
        line = text.format(profile=self.profile.name, reason=self.chosen.reason, workspace=self.workspace.root)
        if self.workspace.mirror:
            line += _(", mirror {mirror}").format(mirror=host.without_logins(self.workspace.mirror))
        click.echo(line)


def choose(workspace: Path | None, profile: str | None, mirror: str | None = None) -> Choice:
    """By the options, the variables, the workspace's record, or what the machine looks like (DESIGN section 3)."""
    place = workspaces.find(workspace).from_mirror(mirror)
    recorded = place.recorded_profile()
    chosen = choose_profile(profile, recorded)
    if not profile and recorded and "/" not in recorded and recorded not in profiles.profile_names():
        raise UcllmError(
            "profile.unknown",
            _("There is no profile `{name}`.").format(name=recorded),
            _("{file} names it.").format(file=place.state / "workspace.json"),
            " ".join((did_you_mean(recorded, profiles.profile_names()), _("Say which with `--profile NAME`."))),
        )
    return Choice(place, profiles.load(chosen.name), chosen)


def parts(words: Sequence[str], known: Sequence[str]) -> list[str]:
    """The ids among ``known`` that the words name: an id, or what stands before its dot (``env``) for all of those.

    Raises :class:`UcllmError` for every word that names none.
    """
    groups = {item: item.partition(".")[0] for item in known}
    names = [*known, *dict.fromkeys(groups.values())]
    problems = [
        Problem("usage", _("This profile has no check `{id}`.").format(id=word), hint=did_you_mean(word, names))
        for word in words
        if word not in names
    ]
    if problems:
        raise UcllmError.of(problems)
    return [item for item in known if item in words or groups[item] in words]


def open_work(
    command: str,
    choice: Choice,
    only: Sequence[str] | None = None,
    *,
    tier: str = QUICK,
    everything: bool = False,
    config: Config | None = None,
    job: Job | None = None,
) -> Work:
    """Collect the facts; ``only`` limits the requirements.

    ``everything`` collects also what none of the requirements reads; ``config`` is a training that is about to start,
    ``job`` are nodes to ask.
    """
    profile = choice.profile
    wanted = requirements.load(item for item in profile.requirements if only is None or item in only)
    sections = sections_for(wanted, tier)
    if everything:
        sections = tuple(dict.fromkeys((*TIMEOUTS_S, *sections)))
    facts = collect(profile, choice.workspace, sections, config=config, job=job)
    return Work(command, choice.workspace, profile, choice.chosen, facts, wanted, tier, job=job)


def sections_for(wanted: Sequence[Requirement], tier: str = QUICK) -> tuple[str, ...]:
    """The sections of the facts that these requirements read in this tier."""
    upto = TIERS[: TIERS.index(tier) + 1]
    return tuple(dict.fromkeys(name for item in wanted if item.tier in upto for name in item.reads))


@contextlib.contextmanager
def changing(workspace: Workspace) -> Iterator[None]:
    """Hold the workspace while it is changed; a second invocation waits, and says for whom.

    Long commands hold it too, so that a pip whose ``ucllm`` was killed has ended before the next one begins.
    """
    try:
        workspace.state.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(workspace.state / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _not_writable(workspace, error) from error
    try:
        told = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    told = True
                    owner = os.pread(descriptor, 100, 0).decode("ascii", "replace").strip()
                    click.echo(
                        _("Waiting for process {pid}, which is changing this workspace.").format(pid=owner), err=True
                    )
                time.sleep(0.2)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        with host.kept_open(descriptor):
            yield
    finally:
        os.close(descriptor)


def _not_writable(workspace: Workspace, error: OSError) -> UcllmError:
    where = f"{error.filename}: " if error.filename else ""
    return UcllmError(
        "workspace.not-writable",
        _("Cannot write to the workspace {path}.").format(path=workspace.root),
        f"{where}{error.strerror or error}",
        _("Choose another with `--workspace DIR`."),
    )


class Teller:
    """Prints each action as it starts, with the time it took when the next one starts, to stderr."""

    def __init__(self) -> None:
        self._began = 0.0

    def __call__(self, requirement: Requirement, action: Action | None, text: str) -> None:
        """One line an action; what an action tells is indented under it."""
        if text:
            click.echo(f"    {text}", err=True)
            return
        self.close()
        if action is not None:
            click.echo(f"  {requirement.id}: {action.text}", err=True)
            self._began = time.monotonic()

    def close(self) -> None:
        """Say how long the last action took, if that was long enough to wonder."""
        seconds = time.monotonic() - self._began
        if self._began and seconds >= 1:
            click.echo("    " + _("done in {seconds} s").format(seconds=round(seconds)), err=True)
        self._began = 0.0


def mend_and_report(
    work: Work,
    *,
    as_json: bool,
    failed_code: int,
    text: Callable[[Mapping[str, Any]], str],
    before: Callable[[], None] = lambda: None,
    strict: bool = False,
    warnings: bool = False,
    confirm: Callable[[Requirement, Sequence[Action]], bool] = lambda _requirement, _actions: True,
) -> None:
    """Fix what fails, check again, print the report and leave. ``failed_code`` is for a fix that did not help."""
    command = work.command
    teller = Teller()
    try:
        with changing(work.workspace):
            before()
            mended = mend.mend(
                work.profile,
                work.workspace,
                work.mendable(),
                # The facts are read again: whoever held the workspace before may have changed it.
                work.collect(),
                work.collect,
                teller,
                tier=work.tier,
                warnings=warnings,
                confirm=confirm,
            )
    except (UcllmError, OSError) as failure:
        error = failure if isinstance(failure, UcllmError) else _not_writable(work.workspace, failure)
        teller.close()
        findings = work.shown(runner.diagnose(work.profile, work.collect(), work.requirements, work.tier))
        report = Report(command, "failed", failed_code, work.data(findings), error.problems)
        finish(report, as_json=as_json, text=text)
        return
    teller.close()
    findings = work.shown(mended.findings)
    code = runner.exit_code(findings, strict=strict)
    if mended.still_failing or (code and command == "setup"):
        code = failed_code
    data = {**work.data(findings), "actions": list(mended.actions)}
    finish(Report(command, "ok" if code == 0 else "failed", code, data), as_json=as_json, text=text)
