"""``machine.driver``: an NVIDIA driver is loaded, answers, and is new enough for the profile's CUDA."""

from __future__ import annotations

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from bootstrap.requirements._gpu import gpu_wanted, login_node, not_wanted, planned
from bootstrap.versions import numbers
from pipeline.i18n import N_, _

#: What NVML's Python binding says where it finds no ``libnvidia-ml.so.1`` (``pynvml.NVMLError``).
LIBRARY_MISSING = "NVML Shared Library Not Found"


def check(profile: Profile, facts: Facts) -> Finding:
    """Compare the driver's version with the oldest that the profile's CUDA runs on."""
    gpu = facts.gpu
    if login_node(facts):
        return planned(profile, facts)
    looked = _("looked through NVML, in /proc/driver/nvidia and /sys/module/nvidia")
    wanted = profile.cuda.driver if profile.cuda else ""
    if not gpu.source:
        if not gpu_wanted(profile):
            return not_wanted()
        text = _("Install the NVIDIA driver of your distribution and restart the machine.")
        if wanted:
            text = _("Install the NVIDIA driver of your distribution, {version} or newer, and restart the machine.")
        remedy = Remedy(text.format(version=wanted), needs=("root", "restart"))
        return fail(_("There is no NVIDIA driver."), (looked, _("found none")), remedy)
    if gpu.problem:
        text = _("Restart the machine, so that the loaded driver and its library are of one version.")
        needs: tuple[str, ...] = ("root", "restart")
        if LIBRARY_MISSING in gpu.problem:  # a restart brings no library
            text = _(
                "Install the driver's libnvidia-ml.so.1, of the driver's own version; in a container, set "
                "NVIDIA_DRIVER_CAPABILITIES=compute,utility when it is started."
            )
            needs = ("root",)
        said = (looked, _("driver {version}").format(version=gpu.driver or "?"), gpu.problem)
        return fail(_("The NVIDIA driver is loaded but does not answer."), said, Remedy(text, needs=needs))
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
