"""``ops.apex``: apex is there with its compiled modules, for this Python and torch (Step 0-5)."""

from __future__ import annotations

from pathlib import Path

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, skipped
from bootstrap.profiles import Profile
from bootstrap.requirements import Action, Requirement, _compile, _extension
from bootstrap.wheels import Build
from bootstrap.workspace import Workspace
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """pip makes a Python-only apex without a word when its options do not reach the build."""
    apex = profile.apex
    if apex is None:
        return skipped(_("this profile needs no apex"))
    remedy = _remedy(profile, facts)
    dist = facts.env.dists.get("apex")
    evidence = [_("looked for apex in site-packages of {path}").format(path=facts.env.path)]
    if dist is None or not dist.whole:
        found = _("found: none") if dist is None else _("half installed: {names}").format(names="apex")
        return fail(_("apex is not installed."), [*evidence, found], remedy)
    evidence.append(_("found: {name} {version}").format(name="apex", version=dist.version))
    problem = _extension.look(apex.modules, facts, evidence, remedy)
    return problem or ok(_("apex with {count} compiled modules").format(count=len(apex.modules)), *evidence)


def inputs(profile: Profile, facts: Facts) -> dict[str, str]:
    """What apex was, or would be, made from."""
    source = profile.sources.get("apex")
    return _compile.made_from(profile, facts, source.commit if source else "", " ".join(_extensions(profile)))


def _extensions(profile: Profile) -> tuple[str, ...]:
    """The guide's, and those of them that need no CUDA for a profile that has none."""
    return ("--cpp_ext",) if profile.cuda is None else ("--cpp_ext", "--cuda_ext")


def _build(profile: Profile, facts: Facts) -> Build:
    source = profile.sources.get("apex")
    # The guide's way for pip 23.1 and newer: older ones drop these options without a word.
    options = tuple(part for name in _extensions(profile) for part in ("--config-settings", f"--build-option={name}"))
    return Build(
        "apex",
        {**inputs(profile, facts), **_compile.compiled_by(facts)},
        Path(facts.workspace),
        checkout=Path(facts.workspace, source.folder if source else "apex"),
        commit=source.commit if source else "",
        variables=_compile.variables(profile, facts),
        options=options,
        contains=profile.apex.modules if profile.apex else (),
    )


def plan(profile: Profile, facts: Facts, workspace: Workspace) -> list[Action]:
    """Compile apex with its extensions and install it."""
    if profile.apex is None:
        return []
    return _compile.plan("ops.apex", _build(profile, facts), profile, facts, workspace)


def _remedy(profile: Profile, facts: Facts) -> Remedy:
    text = _("Build apex again, with its C++ and CUDA extensions.")
    return _compile.remedy(text, _build(profile, facts), facts)


REQUIREMENT = Requirement(
    "ops.apex",
    N_("apex and its extensions"),
    N_("Without its compiled modules training stops at the fused optimizer or layer norm, or is slow."),
    "0-5",
    check,
    plan,
    needs=("env.torch",),
    fix_needs=(*_compile.GUARDS, "source.apex"),
    inputs=inputs,
    reads=("binaries", "env", "gpu", "journal", "machine", "tools"),
)
