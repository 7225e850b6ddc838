"""``build.torch-extensions``: what torch built at run time has no stale lock and is for this machine (Step 0-3)."""

from __future__ import annotations

import re
from pathlib import Path

from bootstrap.facts import Facts, KernelBuild
from bootstrap.findings import Finding, ok
from bootstrap.profiles import Profile
from bootstrap.requirements import Action, Requirement, _kernel_build
from bootstrap.workspace import Workspace
from pipeline.i18n import N_, _


def check(_profile: Profile, facts: Facts) -> Finding:
    """Only the builds that this environment would use count."""
    builds = _ours(facts)
    if not builds:
        looked = _("looked at {path}").format(path=facts.builds.torch_extensions_root)
        return ok(_("Nothing was built for this environment yet."), looked)
    names = ", ".join(Path(build.path).name for build in builds)
    return _kernel_build.judge(builds, facts, _("built: {names}").format(names=names))


def _ours(facts: Facts) -> list[KernelBuild]:
    """torch puts them into a folder named after its Python and CUDA (``py39_cu118``) if it chose the place itself."""
    torch = facts.env.torch
    if torch is None:
        return []
    cuda = f"cu{torch.cuda.replace('.', '')}" if torch.cuda else "cpu"
    name = f"py{''.join(facts.env.version.split('.')[:2])}_{cuda}"
    folders = [(build, Path(build.path).parent.name) for build in facts.builds.torch_extensions]
    return [build for build, parent in folders if parent == name or not re.fullmatch(r"py\d+_(cu|cpu|rocm)\w*", parent)]


def plan(_profile: Profile, facts: Facts, _workspace: Workspace) -> list[Action]:
    """See :func:`bootstrap.requirements._kernel_build.plan`. Who waits is only seen if it works in the folder."""
    return _kernel_build.plan(_ours(facts), facts, lambda _process: False)


REQUIREMENT = Requirement(
    "build.torch-extensions",
    N_("torch's extensions built at run time"),
    N_("A lock left by a killed build makes every later start hang without a word."),
    "0-3",
    check,
    plan,
    needs=("env.python",),
    reads=("builds", "env", "gpu", "tools"),
)
