"""``env.python``: the workspace's ``.venv`` is there, works, and has a Python that the profile supports (Step 0-2)."""

from __future__ import annotations

import shlex
from pathlib import Path

from bootstrap import host
from bootstrap.facts import Facts, Interpreter
from bootstrap.findings import FAIL, OK, Finding, Remedy
from bootstrap.profiles import Profile
from bootstrap.requirements import Action, Requirement, Say
from bootstrap.workspace import Workspace
from pipeline.errors import UcllmError
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """A working virtual environment with a supported Python and pip."""
    env = facts.env
    looked = _("looked at {path}").format(path=env.path)
    if env.state == "absent":
        return _failing(profile, facts, _("There is no Python environment yet."), (looked,))
    if env.state == "broken":
        return _failing(profile, facts, _("The Python environment does not work."), (looked, env.error))
    short = ".".join(env.version.split(".")[:2])
    seen = (looked, _("Python {version}").format(version=env.version))
    if short not in profile.pythons:
        wanted = _("Python {version} is not one this profile supports ({supported}).")
        return _failing(profile, facts, wanted.format(version=short, supported=", ".join(profile.pythons)), seen)
    if not env.has_pip:
        return _failing(profile, facts, _("The Python environment has no pip."), seen)
    return Finding(REQUIREMENT.id, OK, _("Python {version} in .venv").format(version=env.version), seen)


def _failing(profile: Profile, facts: Facts, summary: str, evidence: tuple[str, ...]) -> Finding:
    base = base_interpreter(profile, facts)
    if base is None:
        tried = ", ".join(f"{item.path} ({item.version})" for item in facts.host.interpreters)
        text = _("Install one of Python {supported}; found: {tried}.").format(
            supported=", ".join(profile.pythons), tried=tried or _("none")
        )
        return Finding(REQUIREMENT.id, FAIL, summary, evidence, Remedy(text))
    commands = (shlex.join(_venv(base, Path(facts.env.path))),)
    text = _("Make it with Python {version}.").format(version=base.version)
    return Finding(REQUIREMENT.id, FAIL, summary, evidence, Remedy(text, commands, automatic=True))


def base_interpreter(profile: Profile, facts: Facts) -> Interpreter | None:
    """The Python to make the environment from: the tool's own if the profile supports it, else the newest found."""
    for item in facts.host.interpreters:
        if ".".join(item.version.split(".")[:2]) in profile.pythons:
            return item
    return None


def _venv(base: Interpreter, env: Path) -> tuple[str, ...]:
    return (base.path, "-m", "venv", str(env))


def plan(profile: Profile, facts: Facts, workspace: Workspace) -> list[Action]:
    """Move a broken environment aside, then make a new one."""
    base = base_interpreter(profile, facts)
    if base is None:
        return []
    actions = []
    env = workspace.env
    if facts.env.state != "absent":

        def aside(say: Say) -> None:
            say(_("the old one is kept in {path}").format(path=host.move_aside(env, workspace.backups)))

        text = _("Move the old environment aside")
        actions.append(Action(text, (shlex.join(("mv", str(env), f"{workspace.backups}/")),), aside))

    argv = _venv(base, env)

    def make(_say: Say) -> None:
        try:
            host.run_logged(argv, log=workspace.state / "logs" / "env.python.txt")
        except UcllmError as error:
            hint = _("On Debian and Ubuntu, `apt install python3-venv` provides what is missing.")
            problem = error.problems[0]
            raise UcllmError("env.venv-failed", problem.what, problem.why, hint) from error

    text = _("Make the environment with Python {version}").format(version=base.version)
    actions.append(Action(text, (shlex.join(argv),), make))
    return actions


REQUIREMENT = Requirement("env.python", N_("Python environment"), "0-2", check, plan)
