"""``ops.flash-attn``: flash-attn has the profile's version and fits this Python and torch (Step 0-6)."""

from __future__ import annotations

from pathlib import Path

from bootstrap.facts import Facts
from bootstrap.facts.binaries import FLASH_ATTENTION
from bootstrap.findings import Finding, ok, skipped
from bootstrap.profiles import Profile
from bootstrap.requirements import Action, Requirement, _compile, _extension
from bootstrap.wheels import Build
from bootstrap.workspace import Workspace
from pipeline.i18n import N_, _

#: Its setup.py compiles instead of looking for a ready wheel when this is TRUE: the ready ones are not in our locks.
_FLAGS = {"FLASH_ATTENTION_FORCE_BUILD": "TRUE"}


def check(profile: Profile, facts: Facts) -> Finding:
    """Its setup downloads a ready wheel where it can, and may take one of another ABI than torch's."""
    wanted = profile.flash_attention
    if wanted is None:
        return skipped(_("this profile needs no flash-attn"))
    text = _("Build flash-attn again, for this Python and torch.")
    remedy = _compile.remedy(text, _build(profile, facts), facts)
    evidence: list[str] = []
    absent = _("flash-attn is not installed.")
    problem = _extension.installed("flash-attn", wanted.version, facts, evidence, remedy, absent)
    if problem:
        return problem
    version = facts.env.dists["flash-attn"].version
    return _extension.look((FLASH_ATTENTION,), facts, evidence, remedy) or ok(f"flash-attn {version}", *evidence)


def inputs(profile: Profile, facts: Facts) -> dict[str, str]:
    """What flash-attn was, or would be, made from. It chooses its architectures itself (8.0 and 9.0)."""
    identity, _source = _compile.sdist(profile, "flash-attn")
    return {**_compile.made_from(profile, facts, identity), "GPU": ""}


def _build(profile: Profile, facts: Facts) -> Build:
    told = {**_FLAGS, **_compile.variables(profile, facts)}
    made_from = {**inputs(profile, facts), **_compile.compiled_by(facts)}
    version = profile.flash_attention.version if profile.flash_attention else ""
    source = _compile.sdist(profile, "flash-attn")[1]
    requirement = f"flash-attn=={version}"
    place = Path(facts.workspace)
    return Build(
        "flash-attn", made_from, place, source, requirement=requirement, variables=told, contains=(FLASH_ATTENTION,)
    )


def plan(profile: Profile, facts: Facts, workspace: Workspace) -> list[Action]:
    """Compile flash-attn and install it."""
    if profile.flash_attention is None:
        return []
    return _compile.plan("ops.flash-attn", _build(profile, facts), profile, facts, workspace)


REQUIREMENT = Requirement(
    "ops.flash-attn",
    N_("flash-attn"),
    N_("Training with --use-flash-attn-v2 stops at its import if flash-attn does not fit torch or Python."),
    "0-6",
    check,
    plan,
    needs=("env.torch",),
    fix_needs=(*_compile.GUARDS, "machine.gpu-arch"),
    inputs=inputs,
    reads=("binaries", "env", "gpu", "journal", "machine", "tools"),
)
