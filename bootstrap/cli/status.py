"""``ucllm status``: what the journal knows of a workspace."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from bootstrap import workspace as workspaces
from bootstrap.cli.base import Report, common_options, finish, style
from bootstrap.journal import Journal, Latest, latest
from bootstrap.workspace import Workspace
from pipeline.i18n import N_, _

#: What a state is called, and its colour.
STATES = {
    "started": (N_("running"), "cyan"),
    "done": (N_("done"), "green"),
    "failed": (N_("failed"), "red"),
    "interrupted": (N_("interrupted"), "yellow"),
    "undone": (N_("undone"), "yellow"),
}


@click.command(help=_("Show what setup and fixes did in the workspace: the last of each, how it ended, and when."))
@common_options
def command(
    *,
    workspace: Path | None,
    profile: str | None,  # noqa: ARG001  what is recorded is shown
    as_json: bool,
    verbose: bool,  # noqa: ARG001  read from sys.argv at the edge
) -> None:
    """Read the journal; nothing is checked and nothing is changed."""
    place = workspaces.find(workspace)
    data = {
        "workspace": str(place.root),
        "profile": place.recorded_profile(),
        "mirror": place.recorded_mirror(),
        "requirements": [_described(item, place) for item in latest(Journal(place))],
    }
    finish(Report("status", "ok", 0, data), as_json=as_json, text=_render)


def _described(item: Latest, place: Workspace) -> dict[str, Any]:
    state = item.state
    if state == "started" and not _is_held(place.state / "lock"):
        state = "interrupted"  # by a signal or a crash that left no time to write it down
    log = place.state / "logs" / f"{item.requirement}.txt"
    return {
        "requirement": item.requirement,
        "fix": item.fix,
        "action": item.action,
        "state": state,
        "time": item.time,
        "seconds": item.seconds,
        "error": item.error,
        "log": str(log) if state in ("started", "failed", "interrupted") and os.path.exists(log) else "",  # noqa: PTH110  a name may be too long
    }


def _is_held(lock: Path) -> bool:
    """Whether a command is changing the workspace."""
    try:
        with lock.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _render(data: Mapping[str, Any]) -> str:
    lines = [_("Workspace {workspace}").format(workspace=data["workspace"])]
    if data["profile"]:
        lines.append(_("Profile {profile}").format(profile=data["profile"]))
    if data["mirror"]:
        lines.append(_("Mirror {mirror}").format(mirror=data["mirror"]))
    rows = data["requirements"]
    if not rows:
        return "\n".join([*lines, _("Nothing was done here yet. Start with `ucllm setup`.")])
    names = max(len(row["requirement"]) for row in rows)
    words = {state: _(word) for state, (word, _color) in STATES.items()}
    width = max(len(words[row["state"]]) for row in rows)
    for row in rows:
        word = style(words[row["state"]].ljust(width), STATES[row["state"]][1])
        took = "" if row["seconds"] is None else _("{seconds} s").format(seconds=row["seconds"])
        when = row["time"][:19].replace("T", " ")
        lines.append(f"  {row['requirement']:{names}}  {word}  {when:19}  {took:>9}  {row['action']}".rstrip())
        lines += [f"      {line}" for line in row["error"].splitlines()[:1]]
        if row["log"]:
            lines.append("      " + _("log: {path}").format(path=row["log"]))
    return "\n".join(lines)
