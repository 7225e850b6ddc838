"""``env.miniconda``: Miniconda is there, and not older than the profile's (Step 0-1)."""

from __future__ import annotations

import shlex

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, skipped, unknown, warn
from bootstrap.profiles import Conda, Profile
from bootstrap.requirements import Requirement
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """An installation with a version that is at least the profile's."""
    from packaging.version import InvalidVersion, Version

    wanted, found = profile.conda, facts.conda
    if wanted is None:
        return skipped(_("this profile needs no conda"))
    looked = _("looked for bin/conda in {folders}").format(folders=", ".join(found.looked_in))
    if not found.prefix:
        return fail(_("Miniconda is not installed."), (looked,), _install(wanted, facts))
    where = _("found {path}").format(path=found.prefix)
    try:
        older = Version(found.version) < Version(wanted.version.partition("-")[0])
    except InvalidVersion:
        return unknown(_("Miniconda does not say which version it is."), (where, _("looked in conda-meta")))
    seen = (where, _("conda {version}, the profile has {wanted}").format(version=found.version, wanted=wanted.version))
    if older:
        argv = ("conda", "install", "--name", "base", f"conda={wanted.version.partition('-')[0]}")
        remedy = Remedy(_("Bring conda up to date."), (shlex.join(argv),), needs=("network",))
        return warn(_("conda {version} is older than the tested one.").format(version=found.version), seen, remedy)
    return ok(_("conda {version}").format(version=found.version), *seen)


def _install(conda: Conda, facts: Facts) -> Remedy:
    text = _("Get the installer {installer}, check it, and run it.").format(installer=conda.installer)
    name = conda.installer.rpartition("/")[2]
    # sha256sum wants two spaces between the sum and the name. The options are the guide's.
    sums = shlex.quote(f"{conda.sha256}  {name}")
    run = shlex.join(("bash", name, "-b", "-u", "-p", f"{facts.workspace}/miniconda3"))
    fetch = shlex.join(("curl", "--location", "--remote-name", conda.installer))
    return Remedy(text, (fetch, f"echo {sums} | sha256sum --check", run), needs=("network",))


REQUIREMENT = Requirement(
    "env.miniconda",
    N_("Miniconda"),
    N_("It makes the environment and brings CUDA and torch as they belong together."),
    "0-1",
    check,
    reads=("conda",),
)
