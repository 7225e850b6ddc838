"""``env.imports``: what training imports can be imported (tier deep)."""

from __future__ import annotations

import shlex

from bootstrap.facts import Facts
from bootstrap.facts.deep import modules
from bootstrap.findings import Finding, Remedy, fail, ok, skipped, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import DEEP, Requirement
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """Installed is not importable: a missing library or another ABI shows only here."""
    names = modules(profile, facts.env)
    if not names:
        return skipped(_("there is nothing that this profile imports"))
    found, seconds = facts.deep.imports, facts.deep.seconds
    seen = [
        _("imported {names} with {python}").format(names=", ".join(names), python=facts.env.python),
        *(
            _("{module}: {result} ({seconds:.1f} s)").format(
                module=name, result=found[name] or _("imported"), seconds=seconds.get(name, 0.0)
            )
            for name in names
            if name in found
        ),
    ]
    broken = [name for name in names if found.get(name)]
    if broken:
        argv = (facts.env.python, "-I", "-c", f"import {broken[0]}")
        remedy = Remedy(
            _("See the whole error with this command, then install {names} again.").format(names=", ".join(broken)),
            (shlex.join(argv),),
        )
        return fail(_("These cannot be imported: {names}.").format(names=", ".join(broken)), seen, remedy)
    untried = [name for name in names if name not in found]
    if untried:
        return unknown(_("These were not imported: {names}.").format(names=", ".join(untried)), seen)
    return ok(_("{names} can be imported").format(names=", ".join(names)), *seen)


REQUIREMENT = Requirement(
    "env.imports",
    N_("Imports"),
    N_("A package that is installed but cannot be imported stops training at its first line."),
    "0-3",
    check,
    needs=("env.packages", "env.torch"),
    reads=("deep", "env"),
    tier=DEEP,
)
