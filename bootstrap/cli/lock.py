"""``ucllm lock``: make a profile's lock files, or compare them with what would be made."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from bootstrap import lock
from bootstrap import workspace as workspaces
from bootstrap.cli.base import Report, choose_profile, common_options, finish, style
from bootstrap.facts import conda as conda_facts
from bootstrap.workspace import Workspace
from pipeline.errors import Problem, UcllmError
from pipeline.i18n import N_, _
from pipeline.runs import write_text_atomically

#: What a state is called, and its colour.
STATES = {
    "same": (N_("unchanged"), "green"),
    "changed": (N_("changed"), "yellow"),
    "new": (N_("new"), "yellow"),
    "failed": (N_("not made"), "red"),
}
#: Packages named for a lock that changed; more are counted.
SHOWN = 10


@click.command(
    help=_(
        "Make the profile's lock files anew: conda-lock.yml with conda-lock, hash-locked requirements with uv. "
        "A file that is the same stays untouched. Exit code 1: --check found a difference, 3: a lock could not be made."
    )
)
@common_options
@click.option(
    "--conda", metavar="EXE", help=_("The conda that conda-lock calls. Else Miniconda's, else one over py-rattler.")
)
@click.option("--check", is_flag=True, help=_("Compare only: name what differs, change nothing."))
def command(
    *,
    workspace: Path | None,
    profile: str | None,
    conda: str | None,
    check: bool,
    as_json: bool,
    verbose: bool,  # noqa: ARG001  read from sys.argv at the edge
) -> None:
    """Make every lock that can be made in a temporary folder; then replace what changed, each by rename."""
    place = workspaces.find(workspace)
    recipe = lock.read(choose_profile(profile, place.recorded_profile()).name)
    executable = _executable(conda, place)
    with tempfile.TemporaryDirectory(prefix="ucllm-lock-") as scratch:
        maker = lock.Maker(recipe, Path(scratch), executable, lambda text: click.echo(text, err=True))
        made, problems = _make(maker)
    files = [_described(file, recipe.folder / file, made.get(file)) for file in recipe.files]
    differing = [item["file"] for item in files if item["state"] in ("changed", "new")]
    code = 3 if problems else 0
    if check and differing:
        code = 1
        what = _("Not what is made now: {files}.").format(files=", ".join(differing))
        hint = _("Make them again: `{command}`").format(command=f"ucllm lock --profile {recipe.profile}")
        problems.append(Problem("lock.differs", what, hint=hint))
    if not check:
        for file in differing:
            _write(recipe.folder / file, made[file])
    data = {"profile": recipe.profile, "folder": str(recipe.folder), "check": check, "files": files}
    finish(Report("lock", "error" if code else "ok", code, data, tuple(problems)), as_json=as_json, text=_render)


def _executable(option: str | None, place: Workspace) -> str:
    """The conda that conda-lock is to call; empty for ours."""
    if not option:
        miniconda = conda_facts.read(place.env, conda_facts.roots(place.root)).prefix
        return str(Path(miniconda, "bin", "conda")) if miniconda else ""
    found = shutil.which(option)
    if found is None:
        what = _("There is no command {name}.").format(name=option)
        hint = _("Name a conda, mamba or micromamba, or leave --conda out.")
        raise UcllmError("lock.no-conda", what, hint=hint)
    return str(Path(found).absolute())


def _make(maker: lock.Maker) -> tuple[dict[str, str], list[Problem]]:
    """The text of every lock that can be made, and why the others cannot."""
    made: dict[str, str] = {}
    problems: list[Problem] = []
    for file in maker.recipe.files:
        try:
            made[file] = maker.make(file)
        except UcllmError as error:  # the others do not depend on it
            problems += error.problems
    return made, problems


def _described(file: str, path: Path, text: str | None) -> dict[str, Any]:
    before = path.read_text(encoding="utf-8") if path.is_file() else None
    if text is None:
        state = "failed"
    elif before is None:
        state = "new"
    else:
        state = "same" if text == before else "changed"
    old, new = lock.versions(file, before or ""), lock.versions(file, text or "")
    packages = {name: [old.get(name), new.get(name)] for name in sorted({*old, *new}) if old.get(name) != new.get(name)}
    return {"file": file, "state": state, "packages": packages if state == "changed" else {}}


def _write(path: Path, text: str) -> None:
    try:
        write_text_atomically(path, text)
    except OSError as error:
        what = _("Cannot write {path}.").format(path=path)
        raise UcllmError("lock.not-writable", what, str(error.strerror or error)) from error


def _render(data: Mapping[str, Any]) -> str:
    lines = [_("Locks of profile {profile}, in {folder}").format(profile=data["profile"], folder=data["folder"])]
    if not data["files"]:
        lines.append(_("This profile has no locks to make."))
    width = max((len(item["file"]) for item in data["files"]), default=0)
    for item in data["files"]:
        word, color = STATES[item["state"]]
        lines.append(f"  {item['file'].ljust(width)}  {style(_(word), color)}")
        if item["state"] == "changed":
            lines += [f"    {text}" for text in _changes(item["packages"])]
    return "\n".join(lines)


def _changes(packages: Mapping[str, list[str | None]]) -> list[str]:
    if not packages:
        return [_("the same versions; other hashes or comments")]
    shown = [f"{name} {old or '-'} → {new or '-'}" for name, (old, new) in list(packages.items())[:SHOWN]]
    return shown + ([_("and {count} more").format(count=len(packages) - SHOWN)] if len(packages) > SHOWN else [])
