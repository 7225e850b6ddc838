"""``env.python``: the workspace's ``.venv`` is there, works, and has a Python that the profile supports (Step 0-2)."""

from __future__ import annotations

import shlex
from pathlib import Path

from bootstrap import host
from bootstrap.facts import Facts, Interpreter
from bootstrap.facts.env import UNFINISHED
from bootstrap.findings import Finding, Remedy, fail, ok
from bootstrap.profiles import Profile
from bootstrap.requirements import Action, Doing, Requirement
from bootstrap.versions import minor
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
    seen = (looked, _("Python {version}").format(version=env.version))
    if not _right_kind(profile, facts):
        if profile.env_kind == "conda":
            wrong = _("it is not an environment that conda made")
        else:
            wrong = _("it is not a virtual environment")
        found = _("its Python says that it is installed in {prefix}").format(prefix=env.prefix)
        return _failing(profile, facts, _("The Python environment does not work."), (looked, wrong, found))
    if env.minor not in profile.pythons:
        wanted = _("Python {version} is not one this profile supports ({supported}).")
        return _failing(profile, facts, wanted.format(version=env.minor, supported=", ".join(profile.pythons)), seen)
    if not env.has_pip:
        return _failing(profile, facts, _("The Python environment has no pip."), seen)
    return ok(_("Python {version} in .venv").format(version=env.version), *seen)


def _right_kind(profile: Profile, facts: Facts) -> bool:
    """Whether the environment is of the kind that the profile wants; ``adopt`` takes any."""
    return profile.env_kind in ("adopt", facts.env.kind)


def _failing(profile: Profile, facts: Facts, summary: str, evidence: tuple[str, ...]) -> Finding:
    supported = ", ".join(profile.pythons)
    if profile.env_kind == "conda":
        argv = ("conda", "create", "--prefix", facts.env.path, f"python={profile.pythons[-1]}", "pip", "-y")
        text = _("Move what is there aside, if anything is, and make the environment with conda.")
        return fail(summary, evidence, Remedy(text, (shlex.join(argv),)))
    if profile.env_kind == "adopt":
        text = _("Put a Python ({supported}) that has torch there.").format(supported=supported)
        return fail(summary, evidence, Remedy(text))
    base = base_interpreter(profile, facts)
    if base is None:
        tried = ", ".join(f"{item.path} ({item.version})" for item in facts.machine.interpreters)
        text = _("Install one of Python {supported}; found: {tried}.").format(
            supported=supported, tried=tried or _("none")
        )
        return fail(summary, evidence, Remedy(text))
    commands = (shlex.join(_venv(base, Path(facts.env.path))),)
    text = _("Make it with Python {version}.").format(version=base.version)
    if _lacks_only_pip(profile, facts):
        text, commands = _("Put pip into it."), (shlex.join(_ensurepip(Path(facts.env.path))),)
    return fail(summary, evidence, Remedy(text, commands, automatic=True))


def base_interpreter(profile: Profile, facts: Facts) -> Interpreter | None:
    """The Python to make the environment from: the tool's own if the profile supports it, else the newest found."""
    for item in facts.machine.interpreters:
        if minor(item.version) in profile.pythons:
            return item
    return None


def _lacks_only_pip(profile: Profile, facts: Facts) -> bool:
    right = facts.env.state == "ready" and facts.env.minor in profile.pythons and _right_kind(profile, facts)
    return right and not facts.env.has_pip


def _ensurepip(env: Path) -> tuple[str, ...]:
    return (str(env / "bin" / "python"), "-I", "-m", "ensurepip", "--upgrade", "--default-pip")


def _venv(base: Interpreter, env: Path) -> tuple[str, ...]:
    return (base.path, "-I", "-m", "venv", str(env))


def plan(profile: Profile, facts: Facts, workspace: Workspace) -> list[Action]:
    """Move a broken environment aside, then make a new one. One that lacks only pip keeps what it has.

    Only virtual environments are made here.
    """
    if profile.env_kind != "venv":
        return []
    if _lacks_only_pip(profile, facts):
        return _plan_pip(workspace)
    base = base_interpreter(profile, facts)
    if base is None:
        return []
    actions = []
    env = workspace.env
    if facts.env.state != "absent":

        def aside(doing: Doing) -> None:
            doing.say(_("the old one is kept in {path}").format(path=doing.move_aside(env)))

        text = _("Move the old environment aside")
        actions.append(Action(text, (shlex.join(("mv", str(env), f"{workspace.backups}/")),), aside))

    argv = _venv(base, env)

    def make(_doing: Doing) -> None:
        # Killed at the wrong moment, venv leaves an environment that works but has no `activate`.
        env.mkdir(parents=True)
        unfinished = env / UNFINISHED
        unfinished.touch()
        try:
            host.run_logged(argv, log=workspace.state / "logs" / "env.python.txt")
            unfinished.unlink()
        except UcllmError as error:
            hint = _("On Debian and Ubuntu, `apt install python3-venv` provides what is missing.")
            problem = error.problems[0]
            raise UcllmError("env.venv-failed", problem.what, problem.why, hint) from error

    text = _("Make the environment with Python {version}").format(version=base.version)
    actions.append(Action(text, (shlex.join(argv),), make))
    return actions


def _plan_pip(workspace: Workspace) -> list[Action]:
    argv = _ensurepip(workspace.env)

    def put(doing: Doing) -> None:
        # Where its metadata is left, pip believes that it is installed.
        for folder in workspace.env.glob("lib/python*/site-packages/pip-*.dist-info"):
            doing.move_aside(folder)
        host.run_logged(argv, log=workspace.state / "logs" / "env.python.txt")

    return [Action(_("Put pip into the environment"), (shlex.join(argv),), put)]


REQUIREMENT = Requirement(
    "env.python",
    N_("Python environment"),
    N_("Everything is installed into it and runs in it; the system's Python stays as it is."),
    "0-2",
    check,
    plan,
    reads=("env", "machine"),
)
