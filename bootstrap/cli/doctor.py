"""``ucllm doctor``: facts, checks, findings, and with ``--fix`` the fixes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from bootstrap import requirements
from bootstrap.cli.base import Chosen, Report, common_options, finish
from bootstrap.cli.doctor_text import render, render_explanation, render_list, render_plan
from bootstrap.cli.work import Choice, Work, choose, describe, mend_and_report, open_work
from bootstrap.findings import BLOCKED, OK, Finding
from bootstrap.requirements import DEEP, QUICK, SMOKE, Action, Requirement
from bootstrap.workspace import Workspace
from pipeline.errors import Problem, UcllmError, did_you_mean
from pipeline.i18n import _


@click.command(help=_("Say what is true, what is wrong and what repairs it."))
@click.option("--fix", is_flag=True, help=_("Repair what fails, then check again."))
@click.option("--yes", is_flag=True, help=_("Do not ask before repairing."))
@click.option("--dry-run", is_flag=True, help=_("With --fix: show what would be done, and exit as the check does."))
@click.option("--strict", is_flag=True, help=_("Exit 1 for warnings too."))
@click.option("--deep", is_flag=True, help=_("Also import, hash files, and look into built libraries."))
@click.option("--smoke", is_flag=True, help=_("Also train two steps; includes --deep."))
@click.option("--only", metavar="ID", multiple=True, help=_("Look at this only, and at what it needs. Repeatable."))
@click.option("--skip", metavar="ID", multiple=True, help=_("Do not look at this. Repeatable."))
@click.option("--list", "listing", is_flag=True, help=_("List what the profile asks for, and check nothing."))
@click.option("--explain", metavar="ID", help=_("Say what a check is about, why, and where the guide asks for it."))
@click.option(
    "--save-facts", type=click.Path(path_type=Path, dir_okay=False), help=_("Write what was read to this file.")
)
@click.option(
    "--facts", "facts_file", type=click.Path(path_type=Path, dir_okay=False), help=_("Check a saved file instead.")
)
@common_options
def command(
    *,
    fix: bool,
    yes: bool,
    dry_run: bool,
    strict: bool,
    deep: bool,
    smoke: bool,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    listing: bool,
    explain: str | None,
    save_facts: Path | None,
    facts_file: Path | None,
    workspace: Path | None,
    profile: str | None,
    as_json: bool,
    verbose: bool,  # noqa: ARG001  read from sys.argv at the edge
) -> None:
    """Check, and with --fix repair."""
    from bootstrap import runner

    if explain:
        _explain(explain, workspace, profile, as_json=as_json)
    if listing:
        _list(workspace, profile, as_json=as_json)
    if facts_file and (fix or save_facts):
        what = _("--facts checks another machine's facts: nothing can be repaired or saved here.")
        raise UcllmError("usage", what, hint=_("Leave out --fix and --save-facts."))
    tier = SMOKE if smoke else DEEP if deep else QUICK
    work = _open(workspace, profile, facts_file, only, skip, tier, as_json=as_json, everything=save_facts is not None)
    if save_facts:
        from bootstrap.facts import files

        files.save(work.facts, save_facts)
    findings = _shown(work.findings(), only)
    code = runner.exit_code(findings, strict=strict)
    status = "ok" if code == 0 else "problems"
    if fix:
        plan = work.plan(warnings=True)
        terminal = not as_json and sys.stdin.isatty() and sys.stdout.isatty()
        if plan and not dry_run and (yes or terminal):
            mend_and_report(
                work,
                as_json=as_json,
                failed_code=4,
                text=render,
                strict=strict,
                warnings=True,
                confirm=_yes if yes else _ask,
            )
        finish(Report("doctor", status, code, {**work.data(findings), "plan": plan}), as_json=as_json, text=render)
    finish(Report("doctor", status, code, work.data(findings)), as_json=as_json, text=render)


def _open(
    workspace: Path | None,
    profile: str | None,
    facts_file: Path | None,
    only: Sequence[str],
    skip: Sequence[str],
    tier: str,
    *,
    as_json: bool,
    everything: bool,
) -> Work:
    """Collect the facts, or read them from a file."""
    facts = None
    if facts_file is not None:
        from bootstrap.facts import files

        facts = files.load(facts_file)
    choice = choose(workspace, profile or (facts.profile if facts else None))
    if facts is not None:
        chosen = choice.chosen if profile else Chosen(choice.profile.name, _("the facts were collected for it"))
        choice = Choice(Workspace(Path(facts.workspace)), choice.profile, chosen)
    wanted = _wanted(choice.profile.requirements, only, skip)
    if not as_json:
        choice.announce()
    if facts is None:
        return open_work("doctor", choice, wanted, tier=tier, everything=everything)
    return Work("doctor", choice.workspace, choice.profile, choice.chosen, facts, requirements.load(wanted), tier)


def _wanted(known: Sequence[str], only: Sequence[str], skip: Sequence[str]) -> list[str]:
    """The ids to check, in order; with ``--only`` also those that they need. Raises for ids that are not there."""
    problems = [
        Problem("usage", _("This profile has no check `{id}`.").format(id=item), hint=did_you_mean(item, known))
        for item in (*only, *skip)
        if item not in known
    ]
    if problems:
        raise UcllmError.of(problems)
    return [item for item in requirements.with_needs(only or known, known) if item not in skip]


def _shown(findings: list[Finding], only: Sequence[str]) -> list[Finding]:
    """With ``--only``: what was asked for, and what it waits for."""
    if not only:
        return findings
    blocking = {blocker for item in findings if item.status == BLOCKED for blocker in item.blocked_by}
    return [item for item in findings if item.id in only or (item.id in blocking and item.status != OK)]


def _list(workspace: Path | None, profile: str | None, *, as_json: bool) -> None:
    loaded = choose(workspace, profile).profile
    listed = [describe(item, loaded) for item in requirements.load(loaded.requirements)]
    finish(
        Report("doctor", "ok", 0, {"profile": loaded.name, "requirements": listed}), as_json=as_json, text=render_list
    )


def _explain(wanted: str, workspace: Path | None, profile: str | None, *, as_json: bool) -> None:
    from bootstrap import profiles

    loaded = [profiles.load(name) for name in profiles.profile_names()]
    known = list(dict.fromkeys(item for one in loaded for item in one.requirements))
    if wanted not in known:
        raise UcllmError("usage", _("There is no check `{id}`.").format(id=wanted), hint=did_you_mean(wanted, known))
    mine = choose(workspace, profile).profile
    asking = [one for one in loaded if wanted in one.requirements]
    described = describe(requirements.load([wanted])[0], mine if mine in asking else asking[0])
    data = {"requirement": {**described, "profiles": [one.name for one in asking]}}
    finish(Report("doctor", "ok", 0, data), as_json=as_json, text=render_explanation)


def _yes(_requirement: Requirement, _actions: Sequence[Action]) -> bool:
    return True


def _ask(requirement: Requirement, actions: Sequence[Action]) -> bool:
    """Show one fix and ask for it."""
    plan = [
        {"requirement": requirement.id, "action": action.text, "commands": list(action.commands)} for action in actions
    ]
    click.echo(render_plan(plan))
    return click.confirm(_("Do this?"))
