"""``ops.apex``: apex is there with its compiled modules, for this Python and torch (Step 0-5)."""

from __future__ import annotations

import shlex
from pathlib import PurePosixPath

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, skipped
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement, _extension
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """pip makes a Python-only apex without a word when its options do not reach the build."""
    apex = profile.apex
    if apex is None:
        return skipped(_("this profile needs no apex"))
    remedy = _remedy(profile, facts)
    dist = facts.env.dists.get("apex")
    evidence = [_("looked for apex in site-packages of {path}").format(path=facts.env.path)]
    if dist is None:
        return fail(_("apex is not installed."), [*evidence, _("found: none")], remedy)
    evidence.append(_("found: {name} {version}").format(name="apex", version=dist.version))
    problem = _extension.look(apex.modules, facts, evidence, remedy)
    return problem or ok(_("apex with {count} compiled modules").format(count=len(apex.modules)), *evidence)


def _remedy(profile: Profile, facts: Facts) -> Remedy:
    source = profile.sources.get("apex")
    folder = str(PurePosixPath(facts.workspace) / (source.folder if source else "apex"))
    # The guide's command for pip 23.1 and newer; without --no-deps pip would look for packages again.
    pip = (
        *(
            facts.env.interpreter,
            "-m",
            "pip",
            "install",
            "-v",
            "--disable-pip-version-check",
            "--no-cache-dir",
            "--no-deps",
        ),
        *("--no-build-isolation", "--force-reinstall"),
        *("--config-settings", "--build-option=--cpp_ext", "--config-settings", "--build-option=--cuda_ext", folder),
    )
    return Remedy(_("Build apex again, with its C++ and CUDA extensions."), (shlex.join(pip),))


REQUIREMENT = Requirement(
    "ops.apex",
    N_("apex and its extensions"),
    N_("Without its compiled modules training stops at the fused optimizer or layer norm, or is slow."),
    "0-5",
    check,
    needs=("env.torch",),
    reads=("binaries", "env"),
)
