"""``env.torch``: torch has the profile's version and was built for its CUDA (Step 0-2)."""

from __future__ import annotations

import shlex

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, skipped
from bootstrap.profiles import Profile, TorchBuild
from bootstrap.requirements import Requirement
from bootstrap.versions import release
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """Read from torch's own files. A local part of the version, such as ``+cu118``, is left to the CUDA it names."""
    wanted, torch = profile.torch_build, facts.env.torch
    if wanted is None:
        return skipped(_("this profile names no build of torch"))
    looked = _("looked for torch/version.py in site-packages of {path}").format(path=facts.env.path)
    if torch is None:
        return fail(_("torch is not installed."), (looked, _("found none")), _remedy(profile, wanted, facts))
    seen = (
        looked,
        _("found {version} for {cuda} in {folder}").format(
            version=torch.version, cuda=_cuda(torch.cuda), folder=torch.folder
        ),
        _("the profile has {version} for {cuda}").format(version=wanted.version, cuda=_cuda(wanted.cuda)),
    )
    if wanted.version and release(torch.version) != release(wanted.version):
        summary = _("torch is {version} instead of {wanted}.").format(version=torch.version, wanted=wanted.version)
        return fail(summary, seen, _remedy(profile, wanted, facts))
    # Where no GPU is used, a torch that could use one does as well: an index's default wheel is such a one.
    if wanted.cuda and torch.cuda != wanted.cuda:
        summary = _("torch is built for {cuda} instead of {wanted}.").format(
            cuda=_cuda(torch.cuda), wanted=_cuda(wanted.cuda)
        )
        return fail(summary, seen, _remedy(profile, wanted, facts))
    return ok(_("torch {version} for {cuda}").format(version=torch.version, cuda=_cuda(torch.cuda)), *seen)


def _cuda(version: str) -> str:
    return f"CUDA {version}" if version else _("CPU only")


def _remedy(profile: Profile, wanted: TorchBuild, facts: Facts) -> Remedy:
    text = _("Install torch {version} for {cuda}.").format(version=wanted.version, cuda=_cuda(wanted.cuda))
    if profile.env_kind != "conda":
        argv = (facts.env.python, "-I", "-m", "pip", "install", f"torch=={wanted.version}")
        return Remedy(text, (shlex.join(argv),), needs=("network",))
    parts = (f"pytorch=={wanted.version}", *((f"pytorch-cuda={wanted.cuda}",) if wanted.cuda else ("cpuonly",)))
    command = shlex.join(("conda", "install", "--prefix", facts.env.path, *parts, "-c", "pytorch", "-c", "nvidia"))
    return Remedy(text, (command,), needs=("network",))


REQUIREMENT = Requirement(
    "env.torch",
    N_("torch"),
    N_("DeepSpeed, apex and flash-attn are compiled against exactly this torch and its CUDA."),
    "0-2",
    check,
    needs=("env.python",),
    reads=("env",),
)
