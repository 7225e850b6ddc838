"""``env.shadowing``: Python imports only what was installed into the environment (Step 0-3)."""

from __future__ import annotations

import shlex
from pathlib import Path

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, warn
from bootstrap.profiles import Profile
from bootstrap.requirements import Action, Doing, Requirement
from bootstrap.workspace import Workspace
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """No module lies under a package's name, and no folder from outside is put on the module search path."""
    env = facts.env
    looked = _("looked in site-packages and at the module search path of {python}").format(python=env.python)
    foreign = _foreign(profile, facts)
    first = [path for path in foreign if path in env.foreign_first]
    evidence = [looked]
    evidence += [
        _("{path} has a package's name, but no package that was installed owns it").format(path=path)
        for path in env.shadows
    ]
    evidence += [_("{path} is searched before the environment's packages").format(path=path) for path in first]
    evidence += [
        _("{path} is searched too, after the environment's packages").format(path=path)
        for path in foreign
        if path not in first
    ]
    if len(evidence) == 1:
        return ok(_("nothing foreign is imported"), looked)
    files, left = _files(profile, facts)
    backups = f"{Workspace(Path(facts.workspace)).backups}/"
    commands = tuple(shlex.join(("mv", path, backups)) for path in files)
    text = _("Move aside what puts it there.") if not left else _("Find what puts it on the search path and remove it.")
    remedy = Remedy(text, commands, automatic=not left)
    if env.shadows or first:
        return fail(_("Other modules are imported than those installed."), evidence, remedy)
    return warn(_("Folders outside the environment are searched for modules."), evidence, remedy)


def _foreign(profile: Profile, facts: Facts) -> list[str]:
    """The folders that nobody expects: an adopted Python is reached that way, and checkouts are the workspace's own."""
    if profile.env_kind == "adopt":
        return []
    return [path for path in facts.env.foreign_paths if not path.startswith(f"{facts.workspace}/")]


def _files(profile: Profile, facts: Facts) -> tuple[list[str], list[str]]:
    """The files to move aside, and the foreign folders of which it is not known what puts them there."""
    foreign, sources = _foreign(profile, facts), facts.env.foreign_sources
    files = [*facts.env.shadows, *(sources[path] for path in foreign if path in sources)]
    return list(dict.fromkeys(files)), [path for path in foreign if path not in sources]


def plan(profile: Profile, facts: Facts, workspace: Workspace) -> list[Action]:
    """Move each module, ``.pth`` file or ``sitecustomize`` that does it into the backups."""
    actions = []
    for file in _files(profile, facts)[0]:

        def aside(doing: Doing, path: Path = Path(file)) -> None:
            doing.say(_("it is kept in {path}").format(path=doing.move_aside(path)))

        argv = ("mv", file, f"{workspace.backups}/")
        actions.append(Action(_("Move {path} aside").format(path=file), (shlex.join(argv),), aside))
    return actions


REQUIREMENT = Requirement(
    "env.shadowing",
    N_("Nothing foreign on the module search path"),
    N_("A stray module or folder is imported instead of the package that the locks name."),
    "0-3",
    check,
    plan,
    needs=("env.python",),
    reads=("env",),
)
