"""``env.variables``: nothing of the user's Python settings shadows the environment (Step 0-2)."""

from __future__ import annotations

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, ok, warn
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from bootstrap.requirements.env_packages import shorten
from bootstrap.versions import release
from pipeline.i18n import N_, _

VARIABLES = ("PYTHONPATH", "PYTHONHOME")


def check(profile: Profile, facts: Facts) -> Finding:
    """PYTHONPATH, PYTHONHOME, and packages of the user's own site-packages that differ from the locks."""
    looked = _("looked at {names} and the user's site-packages").format(names=", ".join(VARIABLES))
    wrong, commands = [], []
    for name in VARIABLES:
        value = facts.machine.variables.get(name, "")
        if value and not _inside(facts.workspace, value):
            wrong.append(f"{name}={value}")
            commands.append(f"unset {name}")
    shadowing = _user_packages(profile, facts)
    if shadowing:
        wrong.append(
            _("{folder} comes first with {names}").format(folder=facts.env.user_site, names=shorten(shadowing))
        )
        commands.append("export PYTHONNOUSERSITE=1")
    if not wrong:
        return ok(_("nothing shadows the environment"), looked)
    note = _("ucllm's own processes leave all of this out; what you start yourself in this shell does not")
    remedy = Remedy(_("Drop it in this shell and where it is set."), tuple(commands), needs=("shell",))
    return warn(_("Settings of yours shadow the environment's packages."), (looked, *wrong, note), remedy)


def _inside(workspace: str, value: str) -> bool:
    """Whether every folder named is the workspace's own, such as a checkout of Step 0."""
    return all(item == workspace or item.startswith(f"{workspace}/") for item in value.split(":"))


def _user_packages(profile: Profile, facts: Facts) -> list[str]:
    """Packages of the user's site-packages that the locks or the environment have in another version."""
    wanted = {name: dist.version for name, dist in facts.env.dists.items()}
    wanted |= {pin.name: pin.version for pin in profile.pins_for(facts.env.minor)}
    return [
        f"{name} {version} ≠ {wanted[name]}"
        for name, version in sorted(facts.env.user_dists.items())
        if name in wanted and release(version) != release(wanted[name])
    ]


REQUIREMENT = Requirement(
    "env.variables",
    N_("Python settings of the shell"),
    N_("Packages from elsewhere come before the environment's, so that the locked versions are not what runs."),
    "0-2",
    check,
    needs=("env.python",),
    reads=("machine", "env"),
)
