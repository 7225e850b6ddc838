"""``env.pip``: the command ``pip`` of the environment installs into it (Step 0-2)."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from bootstrap import host
from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok
from bootstrap.profiles import Profile
from bootstrap.requirements import Action, Doing, Requirement
from bootstrap.workspace import Workspace
from pipeline.errors import UcllmError
from pipeline.i18n import N_, _

#: pip's own commands, and not those of others, such as pip-compile.
_COMMAND = re.compile(r"pip(\d+(\.\d+)?)?")


def check(_profile: Profile, facts: Facts) -> Finding:
    """The first line of ``bin/pip`` names this environment's Python."""
    folder = os.path.dirname(facts.env.python)  # noqa: PTH120  text, not a file
    looked = _("looked at the first line of {path}").format(path=f"{folder}/pip")
    if not facts.env.pip_python:
        return fail(_("The environment has no command pip."), (looked, _("found none")), _remedy(facts))
    found = _("found {python}").format(python=facts.env.pip_python)
    if os.path.dirname(facts.env.pip_python) != folder:  # noqa: PTH120  as above
        summary = _("The environment's pip installs into another Python.")
        return fail(summary, (looked, found, _("expected one in {folder}").format(folder=folder)), _remedy(facts))
    return ok(_("pip belongs to the environment"), looked, found)


def _ensurepip(python: str) -> tuple[str, ...]:
    return (python, "-I", "-m", "ensurepip", "--upgrade", "--default-pip")


def _remedy(facts: Facts) -> Remedy:
    """What the plan does. Python brings a pip with it, so this works without a network."""
    return Remedy(
        _("Put the pip that comes with Python in its place; the old one is kept."),
        (shlex.join(_ensurepip(facts.env.python)),),
        automatic=True,
    )


def plan(_profile: Profile, facts: Facts, workspace: Workspace) -> list[Action]:
    """Set pip aside, its commands and its package, and let ``ensurepip`` install the one that Python has with it."""
    if facts.env.state != "ready":
        return []  # an environment that is yet to be made has its own pip
    python, log = Path(facts.env.python), workspace.state / "logs" / "env.pip.txt"

    def put(doing: Doing) -> None:
        # Asked before anything is moved: some systems' Pythons have no ensurepip.
        able = host.capture((str(python), "-I", "-m", "ensurepip", "--version"), timeout_s=30)
        if able.code != 0:
            raise UcllmError(
                "env.no-ensurepip",
                _("This Python brings no pip with it."),
                able.stderr.strip(),
                _("On Debian and Ubuntu, `apt install python3-venv` provides what is missing."),
            )
        commands = [path for path in sorted(python.parent.iterdir()) if _COMMAND.fullmatch(path.name)]
        site = [*workspace.env.glob("lib/python*/site-packages/pip-*.dist-info")]
        site += workspace.env.glob("lib/python*/site-packages/pip")
        for path in (*commands, *site):
            doing.move_aside(path)
        host.run_logged(_ensurepip(str(python)), log=log)

    moved = ("mv", f"{python.parent}/pip", f"{workspace.backups}/")
    text = _("Set the environment's pip aside and put the one that comes with Python in its place")
    return [Action(text, (shlex.join(moved), shlex.join(_ensurepip(str(python)))), put)]


REQUIREMENT = Requirement(
    "env.pip",
    N_("The command pip"),
    N_("What it installs would land in another Python, and the environment would lack it."),
    "0-2",
    check,
    plan,
    needs=("env.python",),
    reads=("env",),
)
