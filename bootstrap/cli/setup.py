"""``ucllm setup``: doctor --fix on an empty machine, with the profile recorded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from bootstrap.cli import doctor_text
from bootstrap.cli.base import Report, common_options, finish
from bootstrap.cli.work import choose, mend_and_report, open_work
from pipeline.i18n import _


@click.command(help=_("Make the environment: everything the profile asks for, in order, checked after each step."))
@click.option("--dry-run", is_flag=True, help=_("Show what would be done, and do nothing."))
@click.option("--yes", is_flag=True, help=_("Do not ask before starting."))
@common_options
def command(
    *,
    dry_run: bool,
    yes: bool,
    workspace: Path | None,
    profile: str | None,
    as_json: bool,
    verbose: bool,  # noqa: ARG001  read from sys.argv at the edge
) -> None:
    """Bring the workspace to what its profile says."""
    import sys

    from bootstrap import runner

    choice = choose(workspace, profile)
    if not as_json:
        choice.announce()
    work = open_work("setup", choice)
    findings = work.findings()
    if dry_run:
        data = {**work.data(findings), "plan": work.plan()}
        finish(Report("setup", "planned", 0, data), as_json=as_json, text=_render)
    if runner.exit_code(findings) == 0 and work.workspace.recorded_profile() == work.profile.name:
        finish(Report("setup", "ok", 0, {**work.data(findings), "actions": []}), as_json=as_json, text=_render)
    if not yes and not as_json and sys.stdin.isatty() and sys.stdout.isatty():
        click.echo(doctor_text.render_plan(work.plan()))
        if not click.confirm(_("Do this in {path}?").format(path=work.workspace.root), default=True):
            raise click.Abort
    mend_and_report(
        work,
        as_json=as_json,
        failed_code=10,
        text=_render,
        before=lambda: work.workspace.record_profile(work.profile.name),
    )


def _render(data: Mapping[str, Any]) -> str:
    text = doctor_text.render({"actions": [], **data, "plan": []})
    if data.get("plan"):
        return text + "\n\n" + doctor_text.render_plan(data["plan"])
    if all(item["status"] in ("ok", "skipped", "warn") for item in data["findings"]):
        return text + "\n" + _("Next: `ucllm train all`")
    return text
