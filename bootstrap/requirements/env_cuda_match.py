"""``env.cuda-match``: nvcc and torch are of one CUDA, by the rule with which DeepSpeed and apex refuse to build."""

from __future__ import annotations

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, skipped, unknown, warn
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from pipeline.i18n import N_, _

#: The newest minor version of each major that DeepSpeed 0.12.4 lets differ from torch's, 0 being the oldest:
#: op_builder/builder.py, cuda_minor_mismatch_ok. What it does not list must be equal.
MINORS = {10: 2, 11: 8, 12: 3}


def check(profile: Profile, facts: Facts) -> Finding:
    """Compare the versions: the same major is needed, another minor is a risk that only DeepSpeed takes."""
    if profile.cuda is None:
        return skipped(_("This profile compiles nothing for a GPU."), "nvcc")
    nvcc, torch = facts.tools.programs.get("nvcc"), facts.env.torch
    if nvcc is None or not nvcc.version or torch is None:
        return unknown(_("The versions of nvcc and torch could not be compared."), ("nvcc", "torch"))
    seen = (
        _("nvcc {version} in {path}").format(version=nvcc.version, path=nvcc.path),
        _("torch {version}, built for CUDA {cuda}").format(version=torch.version, cuda=torch.cuda or _("none")),
    )
    mine, theirs = nvcc.version.split(".")[:2], torch.cuda.split(".")[:2]
    text = _("Install nvcc of CUDA {cuda}, the one that torch was built for.").format(
        cuda=torch.cuda or profile.cuda.version
    )
    if not torch.cuda or (mine != theirs and not _allowed(mine, theirs)):
        summary = _("nvcc is of CUDA {nvcc}, torch of {torch}: nothing can be compiled for it.")
        return fail(summary.format(nvcc=".".join(mine), torch=torch.cuda or _("none")), seen, Remedy(text))
    if mine != theirs:
        summary = _("nvcc is of CUDA {nvcc}, torch of {torch}: DeepSpeed allows it, apex refuses to build.")
        return warn(summary.format(nvcc=".".join(mine), torch=torch.cuda), seen, Remedy(text))
    return ok(_("nvcc and torch: CUDA {cuda}").format(cuda=torch.cuda), *seen)


def _allowed(mine: list[str], theirs: list[str]) -> bool:
    """Whether DeepSpeed builds although the versions differ."""
    newest = MINORS.get(int(mine[0]), -1)
    return mine[0] == theirs[0] and all(int(version[1]) <= newest for version in (mine, theirs) if len(version) > 1)


REQUIREMENT = Requirement(
    "env.cuda-match",
    N_("nvcc and torch of one CUDA"),
    # DeepSpeed 0.12.4, op_builder/builder.py assert_no_cuda_mismatch; apex 23.08, setup.py.
    N_("DeepSpeed refuses another major version and few minors, apex any difference, after minutes of building."),
    "0-2",
    check,
    needs=("env.torch", "env.nvcc"),
    reads=("tools", "env"),
)
