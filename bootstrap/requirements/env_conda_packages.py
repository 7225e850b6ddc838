"""``env.conda-packages``: the environment's conda packages are the profile's (Step 0-2)."""

from __future__ import annotations

import shlex

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, skipped, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from bootstrap.requirements.env_packages import shorten
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """Compare name, version and, where the profile says it, build."""
    if profile.conda is None or not profile.conda.packages:
        return skipped(_("this profile names no conda packages"))
    found, wanted = facts.conda.packages, profile.conda.packages
    looked = _("compared {path} with {count} packages of the profile").format(
        path=f"{facts.env.path}/conda-meta", count=len(wanted)
    )
    if not found:
        return unknown(_("No conda package of the environment could be read."), (looked,))
    missing = [f"{name} {pin}" for name, pin in wanted.items() if name not in found]
    different = [
        f"{name} {found[name]} ≠ {pin}" for name, pin in wanted.items() if name in found and not _same(found[name], pin)
    ]
    parts = ((_("missing: {names}"), missing), (_("another version: {names}"), different))
    wrong = [text.format(names=shorten(names)) for text, names in parts if names]
    if not wrong:
        return ok(_("{count} conda packages as in the profile").format(count=len(wanted)), looked)
    names = {text.split()[0] for text in (*missing, *different)}
    specs = [f"{name}={pin}" for name, pin in wanted.items() if name in names]
    remedy = Remedy(
        _("Install these with conda."),
        (shlex.join(("conda", "install", "--prefix", facts.env.path, *specs)),),
        needs=("network",),
    )
    summary = _("{count} conda packages are not as in the profile.").format(count=len(names))
    return fail(summary, (looked, *wrong), remedy)


def _same(found: str, pin: str) -> bool:
    """Whether ``version=build`` is the pinned one, whose build may be left out."""
    return found == pin or ("=" not in pin and found.partition("=")[0] == pin)


REQUIREMENT = Requirement(
    "env.conda-packages",
    N_("Conda packages"),
    N_("Python, CUDA and torch must be the builds that were made for each other."),
    "0-2",
    check,
    needs=("env.python",),
    reads=("env", "conda"),
)
