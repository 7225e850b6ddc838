"""The environment of kind conda, made of the conda packages that the profile comes to: for ``env.python``."""

from __future__ import annotations

import shlex
from pathlib import Path

from bootstrap import conda, host
from bootstrap.facts import Facts
from bootstrap.profiles import Profile
from bootstrap.requirements import Action, Doing, _anew, _pip
from bootstrap.workspace import Workspace
from pipeline.i18n import _

#: What the environment is begun with; the other packages are ``env.conda-packages``'s.
FIRST = ("python", "pip")


def actions(profile: Profile, facts: Facts, workspace: Workspace) -> list[Action]:
    """Get Python's packages while everything stands as it is, then make the environment of them."""
    env, log = Path(facts.env.path), workspace.state / "logs" / "env.python.txt"

    def get(doing: Doing) -> None:
        solution = conda.resolve(profile, workspace, doing.say)
        conda.fetch(solution.closure(*FIRST), workspace, doing.say)

    def make() -> None:
        solution = conda.resolve(profile, workspace, lambda _text: None)
        conda.install(solution.closure(*FIRST), env, workspace, lambda _text: None)
        if "pip" not in solution.pins:
            host.run_logged(_pip.ensurepip(env / "bin" / "python"), log=log)

    create = ("conda", "create", "--prefix", str(env), f"python={profile.pythons[-1]}", "pip", "-y")
    text = _("Make the environment with conda's Python {version}").format(version=profile.pythons[-1])
    first = Action(_("Resolve the profile's conda packages and get those of Python"), (), get)
    return [first, *_anew.actions(facts, text, (shlex.join(create),), make)]
