"""``ucllm setup``: doctor --fix on an empty machine, with the profile recorded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from bootstrap import requirements
from bootstrap.cli import doctor_text
from bootstrap.cli.base import Report, common_options, finish, mirror_option
from bootstrap.cli.work import choose, mend_and_report, open_work, parts
from pipeline.i18n import _


@click.command(help=_("Make the environment: everything the profile asks for, in order, checked after each step."))
@click.option(
    "--only",
    metavar="PART",
    multiple=True,
    help=_("Make this only, and what it needs: `ops.apex`, or `env` for all of that kind. Repeatable."),
)
@click.option("--dry-run", is_flag=True, help=_("Show what would be done, and do nothing."))
@click.option("--yes", is_flag=True, help=_("Do not ask before starting."))
@mirror_option
@common_options
def command(
    *,
    only: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    mirror: str | None,
    workspace: Path | None,
    profile: str | None,
    as_json: bool,
    verbose: bool,  # noqa: ARG001  read from sys.argv at the edge
) -> None:
    """Bring the workspace to what its profile says."""
    import sys

    from bootstrap import runner

    choice = choose(workspace, profile, mirror)
    render = _render_part if only else _render
    known = choice.profile.requirements
    asked = parts(only, known)
    wanted = requirements.with_needs(asked, known, fixing=True) if only else None
    if not as_json:
        choice.announce()
    work = dataclasses.replace(open_work("setup", choice, wanted), only=tuple(asked))
    findings = work.findings()
    if dry_run:
        data = {**work.data(findings), "plan": work.plan()}
        finish(Report("setup", "planned", 0, data), as_json=as_json, text=render)
    recorded = (work.workspace.recorded_profile(), work.workspace.recorded_mirror())
    if runner.exit_code(findings) == 0 and recorded == (work.profile.name, work.workspace.mirror):
        finish(Report("setup", "ok", 0, {**work.data(findings), "actions": []}), as_json=as_json, text=render)
    if not yes and not as_json and sys.stdin.isatty() and sys.stdout.isatty():
        click.echo(doctor_text.render_plan(work.plan()))
        if not click.confirm(_("Do this in {path}?").format(path=work.workspace.root), default=True):
            raise click.Abort
    mend_and_report(
        work,
        as_json=as_json,
        failed_code=10,
        text=render,
        before=lambda: work.workspace.record(work.profile.name),
    )


def _render(data: Mapping[str, Any]) -> str:
    text = _render_part(data)
    if not data.get("plan") and all(item["status"] in ("ok", "skipped", "warn") for item in data["findings"]):
        return text + "\n" + _("Next: `ucllm train all`")
    return text


def _render_part(data: Mapping[str, Any]) -> str:
    text = doctor_text.render({"actions": [], **data, "plan": []})
    if data.get("plan"):
        return text + "\n\n" + doctor_text.render_plan(data["plan"])
    return text
