"""``machine.shm``: shared memory for NCCL and data loaders, which in a container is 64 MB unless asked for."""

from __future__ import annotations

import math

from bootstrap.facts import Disk, Facts
from bootstrap.findings import Finding, Remedy, fail, ok, skipped, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from bootstrap.requirements.machine_disk import GB, gigabytes
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """Compare what is free in ``/dev/shm`` with the need of each GPU."""
    each = profile.machine.shm_gb * GB
    if each <= 0:
        return skipped(_("This profile needs no shared memory."), f"shm_gb = {profile.machine.shm_gb:g}")
    gpus = len(facts.gpu.devices) or (profile.gpu.count if profile.gpu else 1)
    need = each * gpus
    disk = facts.machine.disks.get("shm", Disk("/dev/shm"))  # noqa: S108  the place that is meant
    reason = facts.machine.errors.get(f"disk {disk.path}", "")
    looked = _("{path}: {free} free of {total}; needed: {each} for each of {gpus} GPUs").format(
        path=disk.path, free=gigabytes(disk.free), total=gigabytes(disk.total), each=gigabytes(each), gpus=gpus
    )
    seen = (looked, reason) if reason else (looked,)
    if disk.writable is False:
        return fail(_("{path} cannot be used.").format(path=disk.path), seen, _larger(facts, need))
    if disk.free is None or disk.total is None:
        return unknown(_("The shared memory could not be read."), seen)
    if disk.total < need:
        summary = _("The shared memory is only {total}; {needed} are needed.")
        return fail(summary.format(total=_size(disk.total), needed=gigabytes(need)), seen, _larger(facts, need))
    if disk.free < need:
        summary = _("The shared memory is full: {free} free, {needed} are needed.")
        text = _("Find what ended programs left there, remove it, and look again.")
        if facts.machine.container:
            text += " " + _larger(facts, disk.total - disk.free + need).text
        return fail(
            summary.format(free=_size(disk.free), needed=gigabytes(need)), seen, Remedy(text, ("ls -lhS /dev/shm",))
        )
    return ok(_("{free} of shared memory").format(free=gigabytes(disk.free)), *seen)


def _larger(facts: Facts, need: float) -> Remedy:
    size = max(1, math.ceil(need / 2**30))
    if facts.machine.container:
        text = _("Start the container again with `--shm-size={size}g` (or with `--ipc=host`).")
    else:
        text = _("Have /dev/shm mounted with {size} GB or more; in a container: `--shm-size={size}g`.")
    return Remedy(text.format(size=size), needs=("restart", "root"))


def _size(size: float) -> str:
    """In MB where GB would say 0.1 GB: people know a container's 64 MB by that number."""
    return gigabytes(size) if size >= GB else f"{size / 2**20:.0f} MB"


REQUIREMENT = Requirement(
    "machine.shm",
    N_("Shared memory"),
    N_(
        "NCCL and data loaders exchange data there; without room they end with a bus error or «unhandled system error»."
    ),
    "0-0",
    check,
    reads=("machine", "gpu"),
)
