"""``machine.gpu``: there is a GPU that programs can see."""

from __future__ import annotations

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, warn
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from bootstrap.requirements._gpu import gpu_wanted, login_node, not_wanted, planned, visible_count
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """Count the GPUs, and look whether ``CUDA_VISIBLE_DEVICES`` hides them."""
    if login_node(facts):
        return planned(profile, facts)
    if not facts.gpu.source and not gpu_wanted(profile):
        return not_wanted()
    devices = facts.gpu.devices
    looked = _("asked the driver ({source}) for its GPUs").format(source=facts.gpu.source or _("none"))
    if not devices:
        text = _("Ask the scheduler for one (Slurm: --gpus-per-node=1), or give the container one (--gpus all).")
        return fail(_("The driver is there, but no GPU is visible."), (looked, _("found none")), Remedy(text))
    named = ", ".join(gpu.name for gpu in devices)
    visible = facts.machine.variables.get("CUDA_VISIBLE_DEVICES")
    seen, shown = [looked, named], len(devices)
    if visible is not None:
        seen.append(f"CUDA_VISIBLE_DEVICES={visible}")
        shown = visible_count(visible, len(devices))
        if not shown:
            remedy = Remedy(_("Let programs see it again."), ("unset CUDA_VISIBLE_DEVICES",), needs=("shell",))
            return fail(_("CUDA_VISIBLE_DEVICES hides every GPU."), seen, remedy)
    if profile.gpu and shown < profile.gpu.count:
        summary = _("{found} GPUs can be used, the profile plans for {wanted}.")
        return warn(summary.format(found=shown, wanted=profile.gpu.count), seen)
    return ok(named, *seen)


REQUIREMENT = Requirement(
    "machine.gpu",
    N_("GPU"),
    N_("Training of this profile runs on a GPU; one that a scheduler or a container hides counts as none."),
    "0-0",
    check,
    needs=("machine.driver",),
    reads=("gpu", "machine"),
)
