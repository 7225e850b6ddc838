"""``machine.driver``: an NVIDIA driver is loaded, answers, and is new enough for the profile's CUDA."""

from __future__ import annotations

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from bootstrap.requirements._gpu import login_node, numbers, planned
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """Compare the driver's version with the oldest that the profile's CUDA runs on."""
    gpu = facts.gpu
    if login_node(facts):
        return planned(profile, facts)
    looked = _("looked through NVML, in /proc/driver/nvidia and /sys/module/nvidia")
    wanted = profile.cuda.driver if profile.cuda else ""
    if not gpu.source:
        text = _("Install the NVIDIA driver of your distribution, {version} or newer, and restart the machine.")
        remedy = Remedy(text.format(version=wanted or _("any")), needs=("root", "restart"))
        return fail(_("There is no NVIDIA driver."), (looked, _("found none")), remedy)
    if gpu.problem:
        text = _("Restart the machine, so that the loaded driver and its library are of one version.")
        seen = (looked, _("driver {version}").format(version=gpu.driver or "?"), gpu.problem)
        return fail(
            _("The NVIDIA driver is loaded but does not answer."), seen, Remedy(text, needs=("root", "restart"))
        )
    if not gpu.driver:
        return unknown(_("The driver's version could not be read."), (looked,))
    seen = (looked, _("driver {version}").format(version=gpu.driver))
    if wanted and numbers(gpu.driver) < numbers(wanted):
        cuda = profile.cuda.version if profile.cuda else ""
        summary = _("The driver {version} is too old for CUDA {cuda}, which needs {wanted}.")
        text = _("Install driver {version} or newer and restart the machine.").format(version=wanted)
        return fail(
            summary.format(version=gpu.driver, cuda=cuda, wanted=wanted), seen, Remedy(text, needs=("root", "restart"))
        )
    runs = _("driver {version}, runs CUDA up to {cuda}") if gpu.cuda else _("driver {version}")
    return ok(runs.format(version=gpu.driver, cuda=gpu.cuda), *seen)


REQUIREMENT = Requirement(
    "machine.driver",
    N_("NVIDIA driver"),
    N_("Without a driver new enough for the CUDA that torch was built for, torch sees no GPU."),
    "0-0",
    check,
    reads=("gpu", "machine"),
)
