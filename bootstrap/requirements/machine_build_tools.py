"""``machine.build-tools``: make and git are there, and ninja once the environment is."""

from __future__ import annotations

import os

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from pipeline.i18n import N_, _

#: Debian's and Ubuntu's packages where they have another name than the program.
PACKAGES = {"ninja": "ninja-build"}


def check(profile: Profile, facts: Facts) -> Finding:
    """Look for each program on the path that builds get; ninja comes with the environment's packages."""
    wanted = ["make", "git"]
    if profile.cuda and "ninja" in facts.env.dists:
        wanted.append("ninja")
    programs = facts.tools.programs
    looked = _("looked in {path}").format(path=os.pathsep.join(facts.tools.path))
    found = [f"{programs[name].path} {programs[name].version}".strip() for name in wanted if name in programs]
    missing = [name for name in wanted if name not in programs]
    if not missing:
        return ok(", ".join(f"{name} {programs[name].version}".strip() for name in wanted), looked, *found)
    remedy = Remedy(
        _("Install them."),
        (f"sudo apt-get install {' '.join(PACKAGES.get(name, name) for name in missing)}",),
        needs=("root",),
    )
    return fail(_("Not found: {names}.").format(names=", ".join(missing)), (looked, *found), remedy)


REQUIREMENT = Requirement(
    "machine.build-tools",
    N_("Build tools"),
    N_("Sources are fetched with git; helpers and kernels are built with make and ninja."),
    "0-0",
    check,
    reads=("tools", "env"),
)
