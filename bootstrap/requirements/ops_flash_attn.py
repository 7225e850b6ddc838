"""``ops.flash-attn``: flash-attn has the profile's version and fits this Python and torch (Step 0-6)."""

from __future__ import annotations

import shlex

from bootstrap.facts import Facts
from bootstrap.facts.binaries import FLASH_ATTENTION
from bootstrap.findings import Finding, Remedy, ok, skipped
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement, _extension
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """Its setup downloads a ready wheel where it can, and may take one of another ABI than torch's."""
    wanted = profile.flash_attention
    if wanted is None:
        return skipped(_("this profile needs no flash-attn"))
    requirement = f"flash-attn=={wanted.version}"
    pip = (
        facts.env.interpreter,
        "-m",
        "pip",
        "install",
        "--no-cache-dir",
        "--no-deps",
        "--no-build-isolation",
        "--force-reinstall",
    )
    # Its setup.py compiles instead of looking for a ready wheel when FLASH_ATTENTION_FORCE_BUILD is TRUE.
    remedy = Remedy(
        _("Build flash-attn again, for this Python and torch."),
        (f"FLASH_ATTENTION_FORCE_BUILD=TRUE {shlex.join((*pip, requirement))}",),
        needs=("network",),
    )
    evidence: list[str] = []
    absent = _("flash-attn is not installed.")
    problem = _extension.installed("flash-attn", wanted.version, facts, evidence, remedy, absent)
    if problem:
        return problem
    version = facts.env.dists["flash-attn"].version
    return _extension.look((FLASH_ATTENTION,), facts, evidence, remedy) or ok(f"flash-attn {version}", *evidence)


REQUIREMENT = Requirement(
    "ops.flash-attn",
    N_("flash-attn"),
    N_("Training with --use-flash-attn-v2 stops at its import if flash-attn does not fit torch or Python."),
    "0-6",
    check,
    needs=("env.torch",),
    reads=("binaries", "env"),
)
