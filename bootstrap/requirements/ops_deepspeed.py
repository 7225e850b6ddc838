"""``ops.deepspeed``: DeepSpeed has the profile's version, its ops are built, for this torch and CUDA (Step 0-3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bootstrap.facts import Deepspeed, Facts
from bootstrap.findings import Finding, Remedy, fail, ok, skipped, unknown, warn
from bootstrap.profiles import Profile
from bootstrap.requirements import Action, Requirement, _compile, _extension, machine_libaio
from bootstrap.versions import minor
from bootstrap.wheels import Build
from bootstrap.workspace import Workspace
from pipeline.i18n import N_, _

#: The libraries that are not named ``<op>_op``: op_builder of 0.12.4, ``absolute_name`` (one lacks a dot).
LIBRARIES = {
    "cutlass_ops": "cutlass_ops",
    "inference_core_ops": "kernelsinference_core_ops",
    "ragged_device_ops": "ragged_device_ops",
    "ragged_ops": "ragged_ops",
}


def check(profile: Profile, facts: Facts) -> Finding:
    """Read from what DeepSpeed's own build recorded. DeepSpeed itself compares torch and CUDA by major.minor."""
    wanted = profile.deepspeed
    if wanted is None:
        return skipped(_("this profile needs no DeepSpeed"))
    remedy = _remedy(profile, facts)
    evidence: list[str] = []
    absent = _("DeepSpeed is not installed.")
    problem = _extension.installed("deepspeed", wanted.version, facts, evidence, remedy, absent)
    if problem:
        return problem
    version, built = facts.env.dists["deepspeed"].version, facts.env.deepspeed
    if not wanted.ops:
        return ok(f"deepspeed {version}", *evidence, _("this profile needs none of its ops"))
    if built is None or not built.installed:
        evidence.append(_("looked for installed_ops in deepspeed/git_version_info_installed.py: none"))
        return unknown(_("DeepSpeed's record of its ops could not be read."), evidence, remedy)
    evidence += table(wanted.ops, built)
    return _problem(wanted.ops, built, facts, evidence, remedy) or ok(
        _("deepspeed {version} with {count} ops").format(version=version, count=len(wanted.ops)), *evidence
    )


def _problem(ops: Sequence[str], built: Deepspeed, facts: Facts, evidence: list[str], remedy: Remedy) -> Finding | None:
    """What is wrong with the ops; ``None`` if nothing."""
    missing = [op for op in ops if not built.installed.get(op)]
    if missing and set(missing) <= {*without(facts)}:
        text = _("Not built, since there is no libaio here: {names}. Training runs without.")
        return warn(text.format(names=", ".join(missing)), evidence)
    if missing:
        return fail(_("Ops that are not built: {names}.").format(names=", ".join(missing)), evidence, remedy)
    gone = [op for op in ops if built.installed.get(op) and not _library(op, built.libraries)]
    if gone:
        return fail(
            _("Ops that were built, and whose libraries are gone: {names}.").format(names=", ".join(gone)),
            evidence,
            remedy,
        )
    torch = facts.env.torch
    if torch is None or not built.torch:
        return unknown(_("It cannot be told for which torch the ops were built."), evidence, remedy)
    was, now = f"torch {built.torch}, CUDA {built.cuda}", f"torch {torch.version}, CUDA {torch.cuda}"
    evidence.append(_("ops built for: {was}; installed: {now}").format(was=was, now=now))
    if minor(built.torch) != minor(torch.version) or (built.cuda and minor(built.cuda) != minor(torch.cuda)):
        return fail(_("The ops were built for another torch or CUDA."), evidence, remedy)
    suffix = facts.env.extension_suffix
    foreign = [path for path in built.libraries if ".cpython-" in path.rpartition("/")[2] and not path.endswith(suffix)]
    if foreign and suffix:
        evidence += foreign
        return fail(_("Some ops were built for another Python."), evidence, remedy)
    return _extension.abi(built.libraries, facts, evidence, remedy)


def _library(op: str, libraries: Sequence[str]) -> bool:
    """Whether one of them is the op's."""
    name = LIBRARIES.get(op, f"{op}_op")
    return any(path.rpartition("/")[2].partition(".")[0] == name for path in libraries)


def table(ops: Sequence[str], built: Deepspeed) -> list[str]:
    """The ops in the shape that users know from ``ds_report``: those wanted, then what else the build recorded."""
    names = dict.fromkeys((*ops, *sorted(built.installed)))
    width = max(len(name) for name in names) + 2
    lines = [f"{'op name ':.<{width}} installed .. compatible"]
    for name in names:
        installed = "[YES] ......" if built.installed.get(name) else "[NO] ......."
        compatible = "[OKAY]" if built.compatible.get(name) else "[NO]"
        lines.append(f"{name + ' ':.<{width}} {installed} {compatible}")
    return lines


def options(profile: Profile, facts: Facts) -> dict[str, str]:
    """The guide's build flags: all ops but those it leaves out. Where there is no libaio, async_io is left out too.

    A profile without CUDA names the ops that a CPU machine can build, and those alone are built.
    """
    wanted = profile.deepspeed
    if wanted is None or not wanted.ops:
        return {"DS_BUILD_OPS": "0"}
    if profile.cuda is None:
        return {"DS_BUILD_OPS": "0", **{_flag(op): "1" for op in wanted.ops if op not in without(facts)}}
    return {"DS_BUILD_OPS": "1", **{_flag(op): "0" for op in (*wanted.left_out, *without(facts))}}


def without(facts: Facts) -> tuple[str, ...]:
    """The ops that cannot be built on this machine, and without which training runs."""
    return () if all(machine_libaio.places(facts).values()) else ("async_io",)


def _flag(op: str) -> str:
    """op_builder's name of the variable, BUILD_VAR: only async_io's is not the op's own."""
    return "DS_BUILD_AIO" if op == "async_io" else f"DS_BUILD_{op.upper()}"


def inputs(profile: Profile, facts: Facts) -> dict[str, str]:
    """What DeepSpeed was, or would be, made from."""
    identity, _source = _compile.sdist(profile, "deepspeed")
    return _compile.made_from(profile, facts, identity, _compile.flags(options(profile, facts)))


def _build(profile: Profile, facts: Facts) -> Build:
    told = {**options(profile, facts), **_compile.variables(profile, facts)}
    made_from = {**inputs(profile, facts), **_compile.compiled_by(facts)}
    version = profile.deepspeed.version if profile.deepspeed else ""
    source = _compile.sdist(profile, "deepspeed")[1]
    # Without this setuptools compiles one op after another; DeepSpeed itself leaves ninja out.
    beside = ("build_ext", f"-j{told['MAX_JOBS']}") if profile.deepspeed and profile.deepspeed.ops else ()
    words = tuple(part for word in beside for part in ("--config-settings", f"--global-option={word}"))
    built = [op for op in (profile.deepspeed.ops if profile.deepspeed else ()) if op not in without(facts)]
    return Build(
        "deepspeed",
        made_from,
        Path(facts.workspace),
        source,
        requirement=f"deepspeed=={version}",
        variables=told,
        options=words,
        contains=tuple(LIBRARIES.get(op, f"{op}_op") for op in built),
    )


def plan(profile: Profile, facts: Facts, workspace: Workspace) -> list[Action]:
    """Compile DeepSpeed with its ops and install it."""
    if profile.deepspeed is None:
        return []
    return _compile.plan("ops.deepspeed", _build(profile, facts), profile, facts, workspace)


def _remedy(profile: Profile, facts: Facts) -> Remedy:
    wanted = profile.deepspeed
    assert wanted is not None  # noqa: S101  the caller has looked
    text = _("Install this DeepSpeed and build its ops beforehand; it takes minutes and needs nvcc and libaio.")
    if not wanted.ops:
        text = _("Install this DeepSpeed.")
    return _compile.remedy(text, _build(profile, facts), facts)


REQUIREMENT = Requirement(
    "ops.deepspeed",
    N_("DeepSpeed and its ops"),
    N_("An op that is not built, or was built for another torch, is compiled at every start or crashes training."),
    "0-3",
    check,
    plan,
    needs=("env.torch",),
    fix_needs=_compile.GUARDS,
    inputs=inputs,
    reads=("binaries", "env", "gpu", "journal", "machine", "tools"),
)
