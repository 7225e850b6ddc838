"""``ucllm doctor``: facts, checks, findings, and with ``--fix`` the fixes."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from bootstrap import requirements
from bootstrap.cli.base import Chosen, Report, common_options, finish, mirror_option
from bootstrap.cli.doctor_text import render, render_explanation, render_list, render_plan
from bootstrap.cli.work import Choice, Work, choose, describe, mend_and_report, open_work, parts
from bootstrap.requirements import DEEP, QUICK, SMOKE, Action, Requirement
from bootstrap.workspace import Workspace
from pipeline.errors import UcllmError, did_you_mean
from pipeline.i18n import _

if TYPE_CHECKING:
    from bootstrap.facts.nodes import Job


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
@click.option(
    "--hostfile",
    type=click.Path(path_type=Path, dir_okay=False),
    help=_("Also look at the nodes of a job together: lines `HOST slots=N`. Asked by ssh, inside a Slurm job by srun."),
)
@click.option(
    "--ssh-config",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help=_("With --hostfile: ask by ssh, with this file instead of your own configuration."),
)
@click.option(
    "--master-port",
    type=click.IntRange(1, 65535),
    help=_("With --hostfile: the port where the processes meet; else MASTER_PORT, else the profile's."),
)
@mirror_option
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
    hostfile: Path | None,
    ssh_config: Path | None,
    master_port: int | None,
    mirror: str | None,
    workspace: Path | None,
    profile: str | None,
    as_json: bool,
    verbose: bool,  # noqa: ARG001  read from sys.argv at the edge
) -> None:
    """Check, and with --fix repair."""
    from bootstrap import runner

    if explain is not None:
        _explain(explain, workspace, profile, as_json=as_json)
    if listing:
        _list(workspace, profile, as_json=as_json)
    if facts_file and (fix or save_facts):
        what = _("--facts checks another machine's facts: nothing can be repaired or saved here.")
        raise UcllmError("usage", what, hint=_("Leave out --fix and --save-facts."))
    job = _job(hostfile, ssh_config, master_port)
    if facts_file and job:
        what = _("--facts checks another machine's facts: no nodes can be asked for it.")
        raise UcllmError("usage", what, hint=_("Save the facts of the nodes with --hostfile and --save-facts there."))
    tier = SMOKE if smoke else DEEP if deep else QUICK
    everything = save_facts is not None
    if save_facts:
        from bootstrap.facts import files

        files.require_place(save_facts)
    work = _open(
        workspace, profile, mirror, facts_file, only, skip, tier, as_json=as_json, everything=everything, job=job
    )
    if save_facts:
        files.save(work.facts, save_facts)
    findings = work.findings()
    code = runner.exit_code(findings, strict=strict)
    status = "ok" if code == 0 else "problems"
    data: dict[str, Any] = work.data(findings)
    if not facts_file:
        data["fix_command"] = _fix_command(click.get_current_context())
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
        data["plan"] = plan
    finish(Report("doctor", status, code, data), as_json=as_json, text=render)


def _fix_command(context: click.Context) -> str:
    """The same check with ``--fix``. What came from a variable or was found is not named: it will be there again."""
    words = ["ucllm", "doctor", "--fix"]
    names = ("workspace", "profile", "mirror", "hostfile", "ssh_config", "master_port", "only", "skip", "deep", "smoke")
    for name in names:
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value, option = context.params[name], f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        else:
            words += [
                word for item in (value if isinstance(value, tuple) else (value,)) for word in (option, str(item))
            ]
    return shlex.join(words)


def _job(hostfile: Path | None, ssh_config: Path | None, port: int | None) -> Job | None:
    """The nodes that the options name. Raises :class:`UcllmError` for a file that names none, line by line."""
    if hostfile is None:
        if ssh_config or port:
            what = _("--ssh-config and --master-port are for the nodes of a job, and none are named.")
            raise UcllmError("usage", what, hint=_("Name them with `--hostfile FILE`."))
        return None
    from bootstrap.facts import nodes
    from pipeline.launch.nodes import parse_hostfile

    try:
        hosts = parse_hostfile(hostfile.read_text(encoding="utf-8"), str(hostfile))
    except (OSError, UnicodeDecodeError) as error:
        what = _("Cannot read {path}.").format(path=hostfile)
        raise UcllmError("usage", what, getattr(error, "strerror", None) or str(error)) from error
    over = "ssh" if ssh_config else nodes.default_way()
    return nodes.Job(hosts, port or 0, over, ssh_config.absolute() if ssh_config else None)


def _open(
    workspace: Path | None,
    profile: str | None,
    mirror: str | None,
    facts_file: Path | None,
    only: Sequence[str],
    skip: Sequence[str],
    tier: str,
    *,
    as_json: bool,
    everything: bool,
    job: Job | None,
) -> Work:
    """Collect the facts, or read them from a file."""
    facts = None
    if facts_file is not None:
        from bootstrap.facts import files

        facts = files.load(facts_file)
    choice = choose(workspace, profile or (facts.profile if facts else None), mirror)
    if facts is not None:
        chosen = choice.chosen if profile else Chosen(choice.profile.name, _("the facts were collected for it"))
        choice = Choice(Workspace(Path(facts.workspace)), choice.profile, chosen)
    if job or (facts is not None and facts.nodes.nodes):
        choice = choice.with_nodes()
    known = choice.profile.requirements
    parts([*only, *skip], known)  # every unknown word of both is told at once
    only, skip = parts(only, known), parts(skip, known)
    wanted = _wanted(known, only, skip)
    if not as_json:
        choice.announce()
    if facts is None:
        work = open_work("doctor", choice, wanted, tier=tier, everything=everything, job=job)
    else:
        found = requirements.load(wanted)
        work = Work("doctor", choice.workspace, choice.profile, choice.chosen, facts, found, tier)
    return dataclasses.replace(work, only=tuple(only), skip=tuple(skip))


def _wanted(known: Sequence[str], only: Sequence[str], skip: Sequence[str]) -> list[str]:
    """The ids to check, in order, and those that they need, also what is skipped: only it says whether they can be.

    Raises when ``--skip`` leaves nothing.
    """
    asked = [item for item in only or known if item not in skip]
    if not asked:
        what = _("Nothing is left to check: --skip leaves out all that was asked for.")
        raise UcllmError("usage", what, hint=_("Leave out --skip, or name another check with --only."))
    return requirements.with_needs(asked, known, fixing=bool(click.get_current_context().params["fix"]))


def _list(workspace: Path | None, profile: str | None, *, as_json: bool) -> None:
    loaded = choose(workspace, profile).profile
    listed = [describe(item, loaded) for item in requirements.load(loaded.requirements)]
    finish(
        Report("doctor", "ok", 0, {"profile": loaded.name, "requirements": listed}), as_json=as_json, text=render_list
    )


def _explain(wanted: str, workspace: Path | None, profile: str | None, *, as_json: bool) -> None:
    from bootstrap import profiles

    loaded = [profiles.load(name) for name in profiles.profile_names()]
    known = [*dict.fromkeys(item for one in loaded for item in one.requirements), *requirements.NODES]
    if wanted not in known:
        raise UcllmError("usage", _("There is no check `{id}`.").format(id=wanted), hint=did_you_mean(wanted, known))
    mine = choose(workspace, profile).profile
    asking = [one for one in loaded if wanted in one.requirements]
    described = describe(requirements.load([wanted])[0], asking[0] if asking and mine not in asking else mine)
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
