"""``env.pip``: the command ``pip`` of the environment installs into it (Step 0-2)."""

from __future__ import annotations

import os

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok
from bootstrap.profiles import Profile
from bootstrap.requirements import Action, Requirement, _pip
from bootstrap.workspace import Workspace
from pipeline.i18n import N_, _


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


def _action(facts: Facts) -> Action:
    text = _("Set the environment's pip aside and put the one that comes with Python in its place")
    return _pip.action("env.pip", text, facts, _pip.EVERYTHING)


def _remedy(facts: Facts) -> Remedy:
    """What the plan does. Python brings a pip with it, so this works without a network."""
    text = _("Put the pip that comes with Python in its place; the old one is kept.")
    return Remedy(text, _action(facts).commands, automatic=True)


def plan(_profile: Profile, facts: Facts, _workspace: Workspace) -> list[Action]:
    """Set pip aside, its commands and its package, and let ``ensurepip`` install the one that Python has with it.

    None for an environment that is yet to be made: it has its own pip.
    """
    return [_action(facts)] if facts.env.state == "ready" else []


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
