"""``env.nvcc``: the nvcc that builds take is the profile's, not another CUDA's that lies earlier on the path."""

from __future__ import annotations

import os

from bootstrap.facts import Facts, Program
from bootstrap.findings import Finding, Remedy, fail, ok, skipped, unknown, warn
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from bootstrap.versions import minor
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """The environment's own where it brings CUDA, else one of the right version on the path."""
    if profile.cuda is None:
        return skipped(_("This profile compiles nothing for a GPU."), "nvcc")
    wanted = profile.cuda.version
    nvcc = facts.tools.programs.get("nvcc")
    seen = [_("looked for nvcc {version} in {path}").format(version=wanted, path=os.pathsep.join(facts.tools.path))]
    seen += [_("found {path} {version}").format(path=item.path, version=item.version or "?") for item in _all(facts)]
    own = f"{facts.env.path}/bin/nvcc"
    toolkit = (f"conda install -p {facts.env.path} nvidia/label/cuda-{wanted}.0::cuda-toolkit",)
    install = Remedy(_("Install the CUDA toolkit into it."), toolkit, needs=("network",))
    module = (f"module load cuda/{wanted}",)
    if profile.cuda.in_env and (nvcc is None or nvcc.path != own):
        return fail(_("The environment has no nvcc."), seen, install)
    if nvcc is None:
        text = _("Load or install CUDA {version}, so that its nvcc is on PATH.").format(version=wanted)
        return fail(_("There is no nvcc."), seen, Remedy(text, module, needs=("shell",)))
    if not nvcc.version:
        return unknown(_("nvcc does not say its version."), seen)
    if not _is(nvcc, wanted):
        summary = _("nvcc is of CUDA {found}, not {wanted}.").format(found=nvcc.version, wanted=wanted)
        first = Remedy(_("Bring CUDA {version} first on PATH.").format(version=wanted), module, needs=("shell",))
        return fail(summary, seen, install if profile.cuda.in_env else first)
    foreign = [item for item in _all(facts)[1:] if not _is(item, wanted)]
    if not foreign:
        return ok(f"nvcc {nvcc.version}", *seen)
    where = foreign[0]
    # CUDA_HOME too: torch.utils.cpp_extension takes it before it looks at PATH.
    text = _("Bring CUDA {version} first on PATH.").format(version=wanted)
    home = facts.env.path if profile.cuda.in_env else os.path.dirname(os.path.dirname(nvcc.path))  # noqa: PTH120  text
    commands = (f"export PATH={home}/bin:$PATH CUDA_HOME={home}",)
    summary = _("Another nvcc, {path} {version}, comes before the right one.").format(
        path=where.path, version=where.version or "?"
    )
    # What a toolkit outside the environment builds does not wait for an activated environment.
    active = not profile.cuda.in_env or facts.env.path in (
        facts.machine.variables.get("CONDA_PREFIX"),
        facts.machine.variables.get("VIRTUAL_ENV"),
    )
    return (fail if active else warn)(summary, seen, Remedy(text, commands, needs=("shell",)))


def _all(facts: Facts) -> list[Program]:
    """The nvcc that a build of ours takes, then those that a build by hand could take."""
    found = [facts.tools.programs.get("nvcc"), facts.tools.user_nvcc, facts.tools.cuda_home]
    return list(dict.fromkeys(item for item in found if item is not None))


def _is(program: Program, wanted: str) -> bool:
    return minor(program.version) == minor(wanted)


REQUIREMENT = Requirement(
    "env.nvcc",
    N_("nvcc"),
    N_("Extensions compiled by another CUDA's nvcc than torch's are refused, or crash when they are loaded."),
    "0-2",
    check,
    needs=("env.python",),
    reads=("tools", "env", "machine"),
)
