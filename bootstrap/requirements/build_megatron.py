"""``build.megatron``: Megatron can be imported by the environment's Python from any folder (Step 0-4)."""

from __future__ import annotations

import os
from pathlib import Path

from bootstrap.facts import Facts
from bootstrap.findings import Finding, fail, ok
from bootstrap.profiles import Profile
from bootstrap.requirements import Action, Requirement, _compile
from bootstrap.wheels import Build
from bootstrap.workspace import Workspace
from pipeline.i18n import N_, _

#: The distribution's name at the pinned commit (``megatron/core/package_info.py``); ``setup.py install`` leaves an egg.
DIST = "megatron-core"


def check(profile: Profile, facts: Facts) -> Finding:
    """Installed as a distribution, or the checkout on the path by a ``.pth`` file."""
    source = profile.sources.get("megatron")
    checkout = os.path.join(facts.workspace, source.folder) if source else ""  # noqa: PTH118  a text, not a file
    looked = _("looked for the distribution {name} in {env}, and for {checkout} on its path").format(
        name=DIST, env=facts.env.path, checkout=checkout
    )
    dist = facts.env.dists.get(DIST)
    if dist is not None and dist.whole:
        return ok(_("{name} {version} is installed").format(name=DIST, version=dist.version), looked)
    if checkout and checkout in facts.env.foreign_paths:
        return ok(_("the checkout is on the path"), looked)
    remedy = _compile.remedy(_("Install it from its checkout."), _build(profile, facts), facts)
    return fail(_("Megatron is not installed."), (looked,), remedy)


def inputs(profile: Profile, facts: Facts) -> dict[str, str]:
    """What it was, or would be, made from. It is Python only: neither torch nor CUDA counts."""
    source = profile.sources.get("megatron")
    return {"source": source.commit if source else "", "Python": facts.env.minor}


def _build(profile: Profile, facts: Facts) -> Build:
    # Not the guide's `setup.py install`: it leaves an egg, which pip can neither check nor replace.
    source = profile.sources.get("megatron")
    checkout = Path(facts.workspace, source.folder if source else "Megatron-DeepSpeed")
    commit = source.commit if source else ""
    return Build("megatron-core", inputs(profile, facts), Path(facts.workspace), checkout=checkout, commit=commit)


def plan(profile: Profile, facts: Facts, workspace: Workspace) -> list[Action]:
    """Make a wheel of the checkout and install it."""
    if "megatron" not in profile.sources:
        return []
    return _compile.plan("build.megatron", _build(profile, facts), profile, facts, workspace)


REQUIREMENT = Requirement(
    "build.megatron",
    N_("Megatron-DeepSpeed"),
    N_("Preparing data and converting checkpoints import it from other folders than its own."),
    "0-4",
    check,
    plan,
    needs=("source.megatron", "env.python"),
    fix_needs=("env.packages",),
    inputs=inputs,
    reads=("env", "journal"),
)
