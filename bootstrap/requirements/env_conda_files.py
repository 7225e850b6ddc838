"""``env.conda-files``: the files of conda packages are those that were installed (tier deep)."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from bootstrap import conda
from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, skipped, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import DEEP, Action, Doing, Requirement, _aside
from bootstrap.requirements.env_packages import shorten
from bootstrap.workspace import Workspace
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """Byte code is passed over, and packages that pip has replaced."""
    if profile.env_kind != "conda":
        return skipped(_("conda did not make this environment"))
    looked = _("compared {count} files with the hashes in {path}").format(
        count=facts.deep.conda_checked or 0, path=f"{facts.env.path}/conda-meta"
    )
    changed = facts.deep.conda_changed
    if changed:
        summary = _("Files of {names} are not as they were installed.").format(names=shorten([*changed]))
        text = _("changed or missing: {names}")
        seen = [text.format(names=f"{name}: {shorten([*paths])}") for name, paths in changed.items()]
        return fail(summary, (looked, *seen), _remedy(facts))
    if not facts.deep.conda_checked:
        return unknown(_("Not all installed files could be compared."), (looked,))
    return ok(_("{count} files as they were installed").format(count=facts.deep.conda_checked), looked)


def _again(facts: Facts) -> str:
    names = [f"{name}={facts.conda.packages.get(name, '')}".rstrip("=") for name in facts.deep.conda_changed]
    return shlex.join(("conda", "install", "--prefix", facts.env.path, "--force-reinstall", "--yes", *names))


def _can(facts: Facts) -> bool:
    """Whether setup knows where all of them come from."""
    return not facts.conda.solution_stale and set(facts.deep.conda_changed) <= set(facts.conda.solution)


def _remedy(facts: Facts) -> Remedy:
    text = _("Install these packages again: {names}.").format(names=", ".join(facts.deep.conda_changed))
    return Remedy(text, (_again(facts),), automatic=_can(facts), needs=("network",))


def plan(profile: Profile, facts: Facts, workspace: Workspace) -> list[Action]:
    """Get the packages again while everything stands as it is; then keep the changed files, and install."""
    names = [*facts.deep.conda_changed]
    if not names or not _can(facts):
        return []
    changed = [path for paths in facts.deep.conda_changed.values() for path in paths]

    def get(doing: Doing) -> None:
        solution = conda.resolve(profile, workspace, doing.say)
        conda.fetch([item for item in solution.packages if item.name in names], workspace, doing.say)

    def aside(doing: Doing) -> None:
        for path in changed:
            if os.path.lexists(path):
                doing.move_aside(Path(path))

    def install(doing: Doing) -> None:
        solution = conda.resolve(profile, workspace, doing.say)
        conda.install(solution.packages, workspace.env, workspace, doing.say, again=names)

    listed = shorten(names)
    return [
        Action(_("Get the conda packages of {names}").format(names=listed), (), get),
        Action(
            _("Set the changed files of {names} aside").format(names=listed),
            _aside.commands(facts, *changed) if len(changed) < 20 else (),
            aside,
        ),
        Action(_("Install {names} again").format(names=listed), (_again(facts),), install),
    ]


REQUIREMENT = Requirement(
    "env.conda-files",
    N_("Files of conda packages"),
    N_("A file that was edited, or that a full disk or a crash damaged, fails in ways that nobody can explain."),
    "0-2",
    check,
    plan,
    needs=("env.python", "env.conda-packages"),
    reads=("deep", "env", "conda"),
    tier=DEEP,
)
