"""``env.miniconda``: Miniconda is there, and not older than the profile's (Step 0-1)."""

from __future__ import annotations

import os
import shlex

from bootstrap import host, mirror
from bootstrap.facts import Facts
from bootstrap.facts.env import UNFINISHED
from bootstrap.findings import Finding, Remedy, fail, ok, skipped, unknown, warn
from bootstrap.profiles import Conda, Profile
from bootstrap.requirements import Action, Doing, Requirement
from bootstrap.workspace import Workspace
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
    return Remedy(text, (*_get(conda), _run(_name(conda), facts.workspace)), automatic=True, needs=("network",))


def _name(conda: Conda) -> str:
    return conda.installer.rpartition("/")[2]


def _get(conda: Conda) -> tuple[str, str]:
    """Commands that get the installer and check it."""
    # sha256sum wants two spaces between the sum and the name.
    sums = shlex.quote(f"{conda.sha256}  {_name(conda)}")
    fetch = shlex.join(("curl", "--location", "--remote-name", conda.installer))
    return (fetch, f"echo {sums} | sha256sum --check")


def _run(installer: str, workspace: str) -> str:
    return shlex.join(("bash", installer, "-b", "-u", "-p", f"{workspace}/miniconda3"))  # the guide's options


def plan(profile: Profile, _facts: Facts, workspace: Workspace) -> list[Action]:
    """Fetch the installer, whose sha256 is compared before it runs (it would only warn itself), then run it."""
    conda, target = profile.conda, workspace.root / "miniconda3"
    if conda is None:
        return []
    installer = workspace.state / "cache" / "downloads" / _name(conda)

    def fetch(_doing: Doing) -> None:
        mirror.fetch(workspace, conda.installer, installer, conda.sha256)

    def run(doing: Doing) -> None:
        if os.path.lexists(target):
            doing.say(_("the old one is kept in {path}").format(path=doing.move_aside(target)))
        target.mkdir(parents=True)
        unfinished = target / UNFINISHED
        unfinished.touch()
        argv = ("bash", str(installer), "-b", "-u", "-p", str(target))
        host.run_logged(argv, log=workspace.state / "logs" / "env.miniconda.txt")
        unfinished.unlink()

    return [
        Action(_("Get {name} and compare its sha256").format(name=_name(conda)), _get(conda), fetch),
        Action(_("Install Miniconda in {path}").format(path=target), (_run(_name(conda), str(workspace.root)),), run),
    ]


REQUIREMENT = Requirement(
    "env.miniconda",
    N_("Miniconda"),
    N_("It makes the environment and brings CUDA and torch as they belong together."),
    "0-1",
    check,
    plan,
    reads=("conda",),
)
