"""``build.megatron``: Megatron can be imported by the environment's Python from any folder (Step 0-4)."""

from __future__ import annotations

import os
import shlex

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
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
    if dist is not None:
        return ok(_("{name} {version} is installed").format(name=DIST, version=dist.version), looked)
    if checkout and checkout in facts.env.foreign_paths:
        return ok(_("the checkout is on the path"), looked)
    # The guide's own command; in the folder, because setup.py reads its files relative to it.
    command = f"cd {shlex.quote(checkout)} && {shlex.quote(facts.env.interpreter)} setup.py install"
    return fail(_("Megatron is not installed."), (looked,), Remedy(_("Install it from its checkout."), (command,)))


REQUIREMENT = Requirement(
    "build.megatron",
    N_("Megatron-DeepSpeed"),
    N_("Preparing data and converting checkpoints import it from other folders than its own."),
    "0-4",
    check,
    needs=("source.megatron", "env.python"),
    reads=("env",),
)
