"""``ops.deepspeed``: DeepSpeed has the profile's version, its ops are built, for this torch and CUDA (Step 0-3)."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from bootstrap.facts import Deepspeed, Facts
from bootstrap.findings import Finding, Remedy, fail, ok, skipped, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement, _extension
from bootstrap.versions import minor
from pipeline.i18n import N_, _


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
    if missing:
        return fail(_("Ops that are not built: {names}.").format(names=", ".join(missing)), evidence, remedy)
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


def _remedy(profile: Profile, facts: Facts) -> Remedy:
    wanted = profile.deepspeed
    assert wanted is not None  # noqa: S101  the caller has looked
    # The cache may hold a wheel without ops; --force-reinstall because the version alone says nothing about them;
    # --no-build-isolation because its setup.py must see the torch it builds for.
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
    flags = ["DS_BUILD_OPS=1", *(f"DS_BUILD_{op.upper()}=0" for op in wanted.left_out)] if wanted.ops else []
    text = _("Install this DeepSpeed and build its ops beforehand; it takes minutes and needs nvcc and libaio.")
    if not wanted.ops:
        text = _("Install this DeepSpeed.")
    command = " ".join((*flags, shlex.join((*pip, f"deepspeed=={wanted.version}"))))
    return Remedy(text, (command,), needs=("network",))


REQUIREMENT = Requirement(
    "ops.deepspeed",
    N_("DeepSpeed and its ops"),
    N_("An op that is not built, or was built for another torch, is compiled at every start or crashes training."),
    "0-3",
    check,
    needs=("env.torch",),
    reads=("binaries", "env"),
)
