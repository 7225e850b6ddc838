"""``env.conda-packages``: the environment's conda packages are the profile's (Step 0-2)."""

from __future__ import annotations

import shlex
from collections.abc import Collection

from bootstrap import conda
from bootstrap.facts import CondaFacts, Facts
from bootstrap.findings import Finding, Remedy, fail, ok, skipped, unknown
from bootstrap.profiles import Conda, Profile
from bootstrap.requirements import Action, Doing, Requirement
from bootstrap.requirements.env_packages import shorten
from bootstrap.workspace import Workspace
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """Compare name, version and build with the profile, and with what setup resolved from it where setup did."""
    if profile.conda is None or not profile.conda.packages:
        return skipped(_("this profile names no conda packages"))
    found, wanted = facts.conda.packages, _wanted(profile.conda, facts.conda)
    looked = _("compared {path} with {count} packages of the profile").format(
        path=f"{facts.env.path}/conda-meta", count=len(profile.conda.packages)
    )
    seen = (looked, *_resolved(facts.conda))
    if not found:
        return unknown(_("No conda package of the environment could be read."), seen)
    missing = [f"{name} {pin}" for name, pin in wanted.items() if name not in found]
    different = [
        f"{name} {found[name]} ≠ {pin}" for name, pin in wanted.items() if name in found and not _same(found[name], pin)
    ]
    parts = ((_("missing: {names}"), missing), (_("another version: {names}"), different))
    wrong = [text.format(names=shorten(names)) for text, names in parts if names]
    names = {text.split()[0] for text in (*missing, *different)}
    if names:
        summary = _("{count} conda packages are not as in the profile.").format(count=len(names))
    elif facts.conda.solution_stale:
        summary = _("The profile's conda packages changed after the environment was made.")
        names = {*profile.conda.packages}
    else:
        return ok(_("{count} conda packages as in the profile").format(count=len(wanted)), *seen)
    commands = _commands(profile.conda, wanted, names, facts.env.path)
    return fail(
        summary, (*seen, *wrong), Remedy(_("Install these with conda."), commands, automatic=True, needs=("network",))
    )


def _wanted(profile: Conda, facts: CondaFacts) -> dict[str, str]:
    """What must be installed: the profile's pins, and all that setup resolved, unless that was for other pins."""
    return {**profile.packages, **({} if facts.solution_stale else facts.solution)}


def _resolved(facts: CondaFacts) -> tuple[str, ...]:
    if not facts.solution:
        return ()
    if facts.solution_stale:
        return (_("what setup resolved was for another state of the profile"),)
    if facts.solution_locked:
        text = _("and with {count} packages of the profile's lock")
    else:
        text = _("and with {count} packages that setup resolved here: the profile has no complete lock")
    return (text.format(count=len(facts.solution)),)


def _same(found: str, pin: str) -> bool:
    """Whether ``version=build`` is the pinned one, whose build may be left out."""
    return found == pin or ("=" not in pin and found.partition("=")[0] == pin)


def _commands(profile: Conda, wanted: dict[str, str], names: Collection[str], env: str) -> tuple[str, ...]:
    """The guide's commands for these packages: those that have a channel of their own first."""
    install = ("conda", "install", "--prefix", env, "--yes")
    chosen = {name: f"{name}={pin}" for name, pin in wanted.items() if name in names}
    fixed = [f"{profile.channel_of[name]}::{spec}" for name, spec in chosen.items() if name in profile.channel_of]
    free = [spec for name, spec in chosen.items() if name not in profile.channel_of]
    others = [channel for channel in profile.channels if channel not in ("defaults", *profile.channel_of.values())]
    channels = [word for channel in others for word in ("-c", channel)]
    commands = [(*install, *fixed)] if fixed else []
    commands += [(*install, *free, *channels)] if free else []
    return tuple(shlex.join(command) for command in commands)


def plan(profile: Profile, facts: Facts, workspace: Workspace) -> list[Action]:
    """Resolve what is not resolved yet, then install what differs; what else is installed stays."""
    wanted = profile.conda
    if wanted is None or profile.env_kind != "conda":
        return []
    # In an environment that is yet to be made, Python is there by then.
    there = facts.conda.packages if facts.env.state == "ready" else {"python": wanted.packages.get("python", "")}
    pins = _wanted(wanted, facts.conda)
    names = [name for name, pin in pins.items() if name not in there or not _same(there[name], pin)]

    def install(doing: Doing) -> None:
        solution = conda.resolve(profile, workspace, doing.say)
        conda.install(solution.packages, workspace.env, workspace, doing.say)

    commands = _commands(wanted, pins, names or [*wanted.packages], facts.env.path)
    return [Action(_("Install the profile's conda packages"), commands, install)]


REQUIREMENT = Requirement(
    "env.conda-packages",
    N_("Conda packages"),
    N_("Python, CUDA and torch must be the builds that were made for each other."),
    "0-2",
    check,
    plan,
    needs=("env.python",),
    reads=("env", "conda"),
)
