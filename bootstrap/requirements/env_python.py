"""``env.python``: the workspace's ``.venv`` is there, works, and has a Python that the profile supports (Step 0-2)."""

from __future__ import annotations

import shlex
from pathlib import Path

from bootstrap.facts import Facts, Interpreter
from bootstrap.findings import Finding, Remedy, fail, ok
from bootstrap.profiles import Profile
from bootstrap.requirements import Action, Requirement, _adopt, _anew, _conda, _pip
from bootstrap.versions import minor
from bootstrap.workspace import Workspace
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """A working environment of the profile's kind with a supported Python and pip."""
    if profile.env_kind == "adopt":
        return _adopt.check(profile, facts)
    env, unusable = facts.env, _anew.unusable(facts)
    if unusable:
        return _failing(profile, facts, *unusable)
    looked = _("looked at {path}").format(path=env.path)
    seen = (looked, _("Python {version}").format(version=env.version))
    if not _right_kind(profile, facts):
        if profile.env_kind == "conda":
            wrong = _("it is not an environment that conda made")
        elif env.base:
            wrong = _("it adopts {python}").format(python=env.base)
        else:
            wrong = _("it is not a virtual environment")
        found = _("its Python says that it is installed in {prefix}").format(prefix=env.prefix)
        return _failing(profile, facts, _("The Python environment does not work."), (looked, wrong, found))
    unsupported = _anew.unsupported(profile, facts)
    if unsupported:
        return _failing(profile, facts, unsupported, seen)
    if not env.has_pip:
        return _failing(profile, facts, _("The Python environment has no pip."), seen)
    return ok(_("Python {version} in .venv").format(version=env.version), *seen)


def _right_kind(profile: Profile, facts: Facts) -> bool:
    """Whether the environment is of the kind that the profile wants, and shows nobody else's packages."""
    return facts.env.kind == profile.env_kind and not facts.env.base


def _failing(profile: Profile, facts: Facts, summary: str, evidence: tuple[str, ...]) -> Finding:
    supported = ", ".join(profile.pythons)
    if profile.env_kind == "conda":
        return fail(summary, evidence, _conda_remedy(profile, facts))
    base = base_interpreter(profile, facts)
    if base is None:
        tried = ", ".join(f"{item.path} ({item.version})" for item in facts.machine.interpreters)
        text = _("Install one of Python {supported}; found: {tried}.").format(
            supported=supported, tried=tried or _("none")
        )
        return fail(summary, evidence, Remedy(text))
    text = _("Make it with Python {version}.").format(version=base.version)
    if _lacks_only_pip(profile, facts):
        text = _("Put pip into it.")
    elif facts.env.state != "absent":
        text = _("Move what is there aside and make it anew with Python {version}.").format(version=base.version)
    commands = _commands(profile, facts)
    return fail(summary, evidence, Remedy(text, commands, automatic=True))


def _conda_remedy(profile: Profile, facts: Facts) -> Remedy:
    text = _("Move what is there aside, if anything is, and make the environment with conda.")
    if _lacks_only_pip(profile, facts):
        text = _("Put pip into it.")
    commands = _commands(profile, facts)
    return Remedy(text, commands, automatic=profile.conda is not None, needs=("network",))


def _commands(profile: Profile, facts: Facts) -> tuple[str, ...]:
    actions = _actions(profile, facts, Workspace(Path(facts.workspace)))
    return tuple(line for action in actions for line in action.commands)


def base_interpreter(profile: Profile, facts: Facts) -> Interpreter | None:
    """The Python to make the environment from: the tool's own if the profile supports it, else the newest found."""
    for item in facts.machine.interpreters:
        if minor(item.version) in profile.pythons:
            return item
    return None


def _lacks_only_pip(profile: Profile, facts: Facts) -> bool:
    right = facts.env.state == "ready" and facts.env.minor in profile.pythons and _right_kind(profile, facts)
    return right and not facts.env.has_pip


def plan(profile: Profile, facts: Facts, workspace: Workspace) -> list[Action]:
    """Move a broken environment aside, then make a new one. One that lacks only pip keeps what it has."""
    if profile.env_kind == "adopt":
        return _adopt.actions(profile, facts)
    return _actions(profile, facts, workspace)


def _actions(profile: Profile, facts: Facts, workspace: Workspace) -> list[Action]:
    if _lacks_only_pip(profile, facts):
        return [_pip.action("env.python", _("Put pip into the environment"), facts, _pip.METADATA)]
    if profile.env_kind == "conda":
        return _conda.actions(profile, facts, workspace) if profile.conda else []
    base = base_interpreter(profile, facts)
    if base is None:
        return []
    argv = (base.path, "-I", "-m", "venv", facts.env.path)
    text = _("Make the environment with Python {version}").format(version=base.version)
    return _anew.actions(facts, text, (shlex.join(argv),), lambda: _anew.venv(facts, argv))


REQUIREMENT = Requirement(
    "env.python",
    N_("Python environment"),
    N_("Everything is installed into it and runs in it; the system's Python stays as it is."),
    "0-2",
    check,
    plan,
    reads=("env", "machine"),
)
