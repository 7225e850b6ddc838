"""``ucllm undo [ID]``: put back what a fix moved aside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from bootstrap import workspace as workspaces
from bootstrap.cli.base import Report, common_options, finish
from bootstrap.cli.work import changing
from bootstrap.journal import Fix, Journal, fixes, undo
from pipeline.errors import UcllmError
from pipeline.i18n import _


@click.command(help=_("Put back what the last fix moved aside, or the fix with this number or of this check."))
@click.argument("fix_id", metavar="[ID]", required=False)
@click.option("--list", "listing", is_flag=True, help=_("List the fixes that can be undone."))
@common_options
def command(
    *,
    fix_id: str | None,
    listing: bool,
    workspace: Path | None,
    profile: str | None,  # noqa: ARG001  the journal is the workspace's, whatever the profile
    as_json: bool,
    verbose: bool,  # noqa: ARG001  read from sys.argv at the edge
) -> None:
    """Undo one fix; what stands in its place now is kept among the backups."""
    place = workspaces.find(workspace)
    journal = Journal(place)
    known = [fix for fix in fixes(journal) if fix.can_be_undone]
    if listing:
        data: dict[str, Any] = {"workspace": str(place.root), "fixes": [_described(fix) for fix in known]}
        finish(Report("undo", "ok", 0, data), as_json=as_json, text=_render_list)
    if not known and not fix_id:
        data = {"workspace": str(place.root), "put_back": []}
        finish(Report("undo", "ok", 0, data), as_json=as_json, text=_render)
    chosen = _choose(known, fix_id)
    try:
        with changing(place):
            put_back = undo(journal, chosen)
    except OSError as error:
        what = _("Cannot put back all that fix {number} changed.").format(number=chosen.number)
        where = f"{error.filename}: " if error.filename else ""
        raise UcllmError("undo.failed", what, f"{where}{error.strerror or error}") from error
    data = {
        "workspace": str(place.root),
        "fix": chosen.number,
        "requirement": chosen.requirement,
        "put_back": [{"from": str(source), "to": str(target)} for source, target in put_back],
    }
    finish(Report("undo", "ok", 0, data), as_json=as_json, text=_render)


def _choose(known: Sequence[Fix], wanted: str | None) -> Fix:
    """The last fix, the one with this number, or the last of this requirement."""
    if wanted is None:
        return known[-1]
    for fix in reversed(known):
        if wanted in (str(fix.number), fix.requirement):
            return fix
    names = ", ".join(f"{fix.number} ({fix.requirement})" for fix in known) or _("none")
    raise UcllmError(
        "undo.unknown",
        _("There is no fix `{id}` that could be undone.").format(id=wanted),
        _("What can be undone: {names}").format(names=names),
        _("List them with `ucllm undo --list`."),
    )


def _described(fix: Fix) -> dict[str, Any]:
    return {
        "fix": fix.number,
        "requirement": fix.requirement,
        "time": fix.time,
        "moved": [{"from": str(source), "to": str(target)} for source, target in fix.moves],
        "modes": [{"path": str(path), "mode": f"{mode:04o}"} for path, mode in fix.modes],
    }


def _render_list(data: Mapping[str, Any]) -> str:
    lines = [f"  {fix['fix']}  {fix['requirement']}  {fix['time']}" for fix in data["fixes"]]
    return "\n".join(lines) or _("Nothing to undo in {path}.").format(path=data["workspace"])


def _render(data: Mapping[str, Any]) -> str:
    if not data["put_back"]:
        return _("Nothing to undo in {path}.").format(path=data["workspace"])
    lines = [_("Undone: fix {number} of {id}").format(number=data["fix"], id=data["requirement"])]
    return "\n".join([*lines, *(f"  {item['to']}" for item in data["put_back"])])
