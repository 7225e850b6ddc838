"""``machine.health``: signs of a machine that will fail later: memory errors, a slowed clock, no inodes left."""

from __future__ import annotations

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, ok, warn
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from pipeline.i18n import N_, _

#: Files still to be made in a workspace: an environment with torch has some 30,000, a checkpoint few.
INODES = 100_000


def check(_profile: Profile, facts: Facts) -> Finding:
    """Nothing of this stops a training at once, so it can only warn."""
    troubles, looked = [], []
    for number, gpu in enumerate(facts.gpu.devices):
        name = f"GPU {number} ({gpu.name})"
        looked.append(
            _("{gpu}: uncorrected memory errors {count}, clock slowed by {reasons}").format(
                gpu=name,
                count="?" if gpu.ecc_errors is None else gpu.ecc_errors,
                reasons=", ".join(gpu.throttled) or _("nothing"),
            )
        )
        if gpu.ecc_errors:
            troubles.append(_("{gpu} has memory errors").format(gpu=name))
        if gpu.throttled:
            troubles.append(_("{gpu} runs slowed down").format(gpu=name))
    for key in ("workspace", "tmp", "home"):
        disk = facts.machine.disks.get(key)
        if disk is None or disk.inodes_free is None:
            continue  # file systems such as btrfs count none; 0 is a full one
        looked.append(_("{path}: {count} files can still be made").format(path=disk.path, count=disk.inodes_free))
        if disk.inodes_free < INODES:
            troubles.append(_("{path} is nearly out of inodes").format(path=disk.path))
    if troubles:
        text = _("Have the GPU looked at, cool the machine, or remove files, before a long training.")
        return warn("; ".join(troubles), looked, Remedy(text))
    return ok(_("no sign of trouble"), *(looked or [_("looked at GPUs and inodes")]))


REQUIREMENT = Requirement(
    "machine.health",
    N_("Health of the machine"),
    N_("A card with memory errors or a slowed clock trains wrongly or slowly for days before anyone notices."),
    "0-0",
    check,
    reads=("gpu", "machine"),
)
