"""``build.fused-kernels``: Megatron's kernels have no stale lock and are for this machine (the guide's trap 2)."""

from __future__ import annotations

from pathlib import Path

from bootstrap.facts import Facts
from bootstrap.facts.kernels import waits_for_megatron
from bootstrap.findings import Finding, ok
from bootstrap.profiles import Profile
from bootstrap.requirements import Action, Requirement, _kernel_build
from bootstrap.workspace import Workspace
from pipeline.i18n import N_, _


def check(_profile: Profile, facts: Facts) -> Finding:
    """No build folder is fine: the first start compiles."""
    build = facts.builds.fused_kernels
    if build is None:
        looked = _("there is no build folder in Megatron's fused_kernels")
        return ok(_("They will be compiled at the first start."), looked)
    names = ", ".join(Path(path).name for path in build.built)
    good = _("built: {names}").format(names=names) if names else _("They will be compiled at the first start.")
    return _kernel_build.judge([build], facts, good)


def plan(profile: Profile, facts: Facts, workspace: Workspace) -> list[Action]:
    """See :func:`bootstrap.requirements._kernel_build.plan`."""
    build, source = facts.builds.fused_kernels, profile.sources.get("megatron")
    if build is None or source is None:
        return []
    return _kernel_build.plan([build], facts, waits_for_megatron(workspace.root / source.folder))


REQUIREMENT = Requirement(
    "build.fused-kernels",
    N_("Megatron's fused kernels"),
    N_("A lock left by a killed build makes every later start hang without a word."),
    "0-4",
    check,
    plan,
    # A build for another GPU or torch can only be judged where these themselves are right.
    needs=("source.megatron", "env.python", "machine.gpu-arch", "env.torch"),
    reads=("builds", "env", "gpu", "tools"),
)
