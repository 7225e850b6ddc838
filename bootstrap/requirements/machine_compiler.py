"""``machine.compiler``: a C++ compiler is there, and nvcc accepts it as its host compiler."""

from __future__ import annotations

import os

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """Look for g++ and compare its major version with the newest that the profile's nvcc takes."""
    looked = _("looked for g++ in {path}").format(path=os.pathsep.join(facts.tools.path))
    compiler = facts.tools.programs.get("g++")
    newest = profile.cuda.newest_gcc if profile.cuda else 0
    if compiler is None:
        remedy = Remedy(_("Install a C++ compiler."), ("sudo apt-get install build-essential",), needs=("root",))
        if newest:
            remedy = Remedy(_("Install a C++ compiler."), _install(newest), needs=("root", "shell"))
        return fail(_("There is no C++ compiler."), (looked, _("found none")), remedy)
    seen = (looked, f"{compiler.path} {compiler.version}".strip())
    if not newest:
        return ok(f"g++ {compiler.version}".strip(), *seen)
    major = compiler.version.partition(".")[0]
    if not major.isdigit():
        return unknown(_("The compiler does not say its version."), seen)
    cuda = profile.cuda.version if profile.cuda else ""
    if int(major) > newest:
        text = _("Install g++ {version} and let builds use it.").format(version=newest)
        summary = _("g++ {version} is too new: nvcc of CUDA {cuda} takes at most {newest}.")
        return fail(
            summary.format(version=compiler.version, cuda=cuda, newest=newest),
            seen,
            Remedy(text, _install(newest), needs=("root", "shell")),
        )
    return ok(_("g++ {version}, nvcc takes up to {newest}").format(version=compiler.version, newest=newest), *seen)


def _install(version: int) -> tuple[str, ...]:
    """The package brings no ``g++`` without a version in its name: builds must be told."""
    return (f"sudo apt-get install g++-{version}", f"export CC=gcc-{version} CXX=g++-{version}")


REQUIREMENT = Requirement(
    "machine.compiler",
    N_("C++ compiler"),
    N_("DeepSpeed, apex and Megatron compile their parts here; nvcc refuses a newer compiler than it knows."),
    "0-0",
    check,
    reads=("tools",),
)
