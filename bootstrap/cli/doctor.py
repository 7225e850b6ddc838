"""``ucllm doctor``: facts, checks, findings, and with ``--fix`` the fixes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from bootstrap.cli.base import Report, choose_profile, common_options, finish, style
from bootstrap.cli.work import Work, mend_and_report, open_work
from pipeline.i18n import _

MARKS = {"ok": "✓", "warn": "!", "fail": "✗", "blocked": "·", "unknown": "?", "skipped": "-"}
COLORS = {
    "ok": "green",
    "warn": "yellow",
    "fail": "red",
    "blocked": "bright_black",
    "unknown": "yellow",
    "skipped": "bright_black",
}


@click.command(help=_("Say what is true, what is wrong and what repairs it."))
@click.option("--fix", is_flag=True, help=_("Repair what fails, then check again."))
@click.option("--yes", is_flag=True, help=_("Do not ask before repairing."))
@click.option("--dry-run", is_flag=True, help=_("With --fix: show what would be done, and exit as the check does."))
@click.option("--strict", is_flag=True, help=_("Exit 1 for warnings too."))
@common_options
def command(
    *,
    fix: bool,
    yes: bool,
    dry_run: bool,
    strict: bool,
    workspace: Path | None,
    profile: str | None,
    as_json: bool,
    verbose: bool,  # noqa: ARG001  read from sys.argv at the edge
) -> None:
    """Check, and with --fix repair."""
    from bootstrap import runner

    work = open_work("doctor", workspace, profile, choose_profile)
    findings = runner.diagnose(work.profile, work.facts, work.requirements)
    code = runner.exit_code(findings, strict=strict)
    if fix and code in (1, 3) and not dry_run and (yes or _confirmed(work, as_json=as_json)):
        mend_and_report(work, "doctor", as_json=as_json, failed_code=4, text=render, strict=strict)
    data = work.data(findings)
    if fix and code:
        data["plan"] = work.plan()
    status = "ok" if code == 0 else "problems"
    finish(Report("doctor", status, code, data), as_json=as_json, text=render)


def _confirmed(work: Work, *, as_json: bool) -> bool:
    """Ask on a terminal; without one, ``--fix`` needs ``--yes`` and only its plan is shown."""
    import sys

    if as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    click.echo(render_plan(work.plan()))
    return click.confirm(_("Do this?"))


def render_plan(plan: list[dict[str, Any]]) -> str:
    """The plan as text: each action, and its exact commands."""
    lines = [_("What --fix would do:")]
    for action in plan:
        lines.append(f"  {action['requirement']}: {action['action']}")
        lines += [f"      $ {line}" for line in action["commands"]]
    return "\n".join(lines)


def render(data: Mapping[str, Any]) -> str:
    """The findings as text: failures first, each with its evidence and remedy; the fix command last."""
    header = _("Profile {profile} ({reason}), workspace {workspace}").format(
        profile=data["profile"]["name"], reason=data["profile"]["reason"], workspace=data["workspace"]
    )
    lines = [header, ""]
    findings = sorted(
        data["findings"],
        key=lambda item: (
            ["fail", "unknown", "warn"].index(item["status"]) if item["status"] in ("fail", "unknown", "warn") else 3
        ),
    )
    width = max((len(item["id"]) for item in findings), default=0)
    for item in findings:
        mark = style(MARKS[item["status"]], COLORS[item["status"]])
        lines.append(f"  {mark} {item['id']:<{width}}  {item['summary']}")
        if item["status"] in ("fail", "unknown", "warn"):
            lines += [f"      {line}" for line in item["evidence"]]
            if item["remedy"]:
                lines.append("      " + _("remedy: {text}").format(text=item["remedy"]["text"]))
    counts = {status: sum(item["status"] == status for item in findings) for status in MARKS}
    lines += ["", _summary(counts)]
    if data.get("plan"):
        lines += ["", render_plan(data["plan"]), "", _("Do it with: `ucllm doctor --fix --yes`")]
    elif any(item["status"] == "fail" and item["remedy"] and item["remedy"]["automatic"] for item in findings):
        lines += [_("Repair with: `ucllm doctor --fix`")]
    return "\n".join(lines)


def _summary(counts: Mapping[str, int]) -> str:
    names = {
        "ok": _("{n} fine"),
        "warn": _("{n} warnings"),
        "fail": _("{n} failed"),
        "blocked": _("{n} waiting"),
        "unknown": _("{n} could not be checked"),
        "skipped": _("{n} skipped"),
    }
    return ", ".join(names[status].format(n=count) for status, count in counts.items() if count)
