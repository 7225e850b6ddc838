"""``env.packages`` where the profile adopts a Python: ranges that its packages or the environment's own must meet.

What is missing goes into the environment, which comes first; nothing of the adopted Python is replaced. No lock with
hashes can be made for it, because what fits depends on what is there.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from bootstrap import host
from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok
from bootstrap.profiles import Profile, normalize
from bootstrap.requirements import Action, Doing, env_packages
from bootstrap.workspace import Workspace
from pipeline.errors import UcllmError
from pipeline.i18n import _

#: What is never installed beside the adopted Python's own: it is what was adopted.
ADOPTED = "torch"


def check(profile: Profile, facts: Facts) -> Finding:
    """Every range is met by what the environment imports, its own or adopted."""
    own = len(facts.env.dists) - len(facts.env.adopted)
    looked = _("looked at {own} packages of the environment and {adopted} of {python}").format(
        own=own, adopted=len(facts.env.adopted), python=facts.env.base
    )
    wrong = _unmet(profile, facts)
    if not wrong:
        return ok(_("{count} packages as the embedded engines need them").format(count=len(profile.ranges)), looked)
    evidence = (looked, *(_told(facts, text, name) for text, name in wrong.items()))
    summary = _("{count} packages that the embedded engines need are missing or of another version.")
    summary = summary.format(count=len(wrong))
    if ADOPTED in wrong.values():
        text = _("Activate a Python with {wanted}, move {path} aside and run this again.")
        wanted = next(text for text, name in wrong.items() if name == ADOPTED)
        return fail(summary, evidence, Remedy(text.format(wanted=wanted, path=facts.env.path)))
    text = _("Install them into the environment; every package of {python} stays as it is.")
    commands = tuple(line for action in actions(profile, facts) for line in action.commands)
    return fail(summary, evidence, Remedy(text.format(python=facts.env.base), commands, automatic=True))


def _unmet(profile: Profile, facts: Facts) -> dict[str, str]:
    """The ranges that are not met, as text, and the names they are for."""
    from packaging.requirements import Requirement as Wanted
    from packaging.version import InvalidVersion, Version

    found = {}
    for text in profile.ranges:
        wanted = Wanted(text)
        name = normalize(wanted.name)
        dist = facts.env.dists.get(name)
        try:
            met = dist is not None and wanted.specifier.contains(Version(dist.version), prereleases=True)
        except InvalidVersion:
            met = False
        if not met or name in _broken(facts):
            found[text] = name
    return found


def _told(facts: Facts, text: str, name: str) -> str:
    dist = facts.env.dists.get(name)
    if dist is None:
        return _("{wanted}: missing").format(wanted=text)
    if name in _broken(facts):
        return _("{wanted}: half installed").format(wanted=text)
    return _("{wanted}: {version} is there").format(wanted=text, version=dist.version)


def _broken(facts: Facts) -> list[str]:
    """Packages that pip left half installed here. Distributions of other makers need not have what pip leaves."""
    return [name for name, dist in facts.env.dists.items() if not dist.whole and name not in facts.env.adopted]


def actions(profile: Profile, facts: Facts, workspace: Workspace | None = None) -> list[Action]:
    """Let pip install what is missing, held to the versions that the adopted Python has."""
    wrong = _unmet(profile, facts)
    if not wrong or ADOPTED in wrong.values():
        return []
    workspace = workspace or Workspace(Path(facts.workspace))  # a finding names no mirror
    pins = constraints(facts, set(wrong.values()))
    file = workspace.state / "cache" / "adopted-constraints.txt"
    install = (str(workspace.python), "-I", "-m", "pip", "install", "--only-binary", ":all:", *host.PIP_QUIET)
    argv = (*install, "--constraint", str(file), *wrong)
    broken = [name for name in _broken(facts) if name in wrong.values()]

    def put(_doing: Doing) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{pin}\n" for pin in pins), encoding="utf-8")
        log = workspace.state / "logs" / "env.packages.txt"
        try:
            host.run_logged(argv, log=log, env=env_packages.pip_environment(workspace))
        except UcllmError as error:
            problem = error.problems[0]
            hint = _(
                "Read {log}. {python} is left as it is, and pip must work with the versions it has: if they do not "
                "fit, update them there, or use a profile that installs its own (`--profile cpu`)."
            )
            hint = hint.format(log=log, python=facts.env.base)
            raise UcllmError("env.packages-failed", problem.what, problem.why, hint) from error

    text = _("Install {names} with pip, without hashes: what fits depends on the packages of {python}, which are kept")
    text = text.format(names=env_packages.shorten(list(wrong)), python=facts.env.base)
    aside = [env_packages.aside(workspace, broken)] if broken else []
    return [*aside, Action(text, (shlex.join(argv),), put)]


def constraints(facts: Facts, free: set[str]) -> list[str]:
    """The adopted packages in their versions, but for those of which the environment gets its own."""
    from packaging.version import InvalidVersion, Version

    pins = []
    for name in facts.env.adopted:
        version = facts.env.dists[name].version
        try:
            Version(version)
        except InvalidVersion:
            continue  # pip could not read it
        if name not in free:
            pins.append(f"{name}=={version}")
    return pins
