"""What the checks of the GPU share: which code runs on it, and planning for a GPU that cannot be seen."""

from __future__ import annotations

import re

from bootstrap.facts import Facts, Gpu
from bootstrap.findings import Finding, skipped
from bootstrap.profiles import Profile
from pipeline.i18n import _


def login_node(facts: Facts) -> bool:
    """Whether this looks like a node from which jobs are started: a scheduler is here, a driver is not."""
    return bool(facts.machine.scheduler) and not facts.gpu.source


def gpu_wanted(profile: Profile) -> bool:
    """Whether the profile names a GPU or a CUDA: one that names neither can do without."""
    return profile.gpu is not None or profile.cuda is not None


def not_wanted() -> Finding:
    """What a check says where there is no driver and the profile names no GPU."""
    looked = _("looked for a driver through NVML, in /proc/driver/nvidia and /sys/module/nvidia")
    return skipped(_("There is no NVIDIA driver, and this profile names no GPU."), looked, _("found none"))


def visible_count(value: str, here: int) -> int:
    """How many of ``here`` GPUs a ``CUDA_VISIBLE_DEVICES`` leaves.

    CUDA's programming guide: a list of indices or names (``GPU-…``, ``MIG-…``); what comes after the first invalid
    entry is hidden too. Names are taken as valid: the facts have none to compare them with.
    """
    count = 0
    for entry in (part.strip() for part in value.split(",")):
        if not entry.startswith(("GPU-", "MIG-")) and not (entry.isdecimal() and int(entry) < here):
            break
        count += 1
    return count


def planned(profile: Profile, facts: Facts) -> Finding:
    """What a check says on a login node."""
    name = profile.gpu.name if profile.gpu else _("a GPU")
    text = _("There is no GPU on this node ({scheduler} is here): planning for {gpu}.")
    looked = _("looked for a driver through NVML, in /proc/driver/nvidia and /sys/module/nvidia")
    return skipped(text.format(scheduler=facts.machine.scheduler, gpu=name), looked)


def devices(profile: Profile, facts: Facts) -> tuple[Gpu, ...]:
    """The GPUs to check for: those here, on a login node the profile's declared one."""
    if facts.gpu.devices or profile.gpu is None or not login_node(facts):
        return facts.gpu.devices
    return (Gpu(profile.gpu.name, profile.gpu.capability),)


def runs(mine: tuple[int, ...], arch: str) -> bool:
    """Whether code for ``arch`` (``sm_80``, ``compute_90a``) runs on capability ``mine``.

    The rules of CUDA's programming guide: code for 8.0 runs on every 8.x with x >= 0; PTX is compiled by the driver for
    its own and every newer capability. What ends in ``a`` is for that one alone, in ``f`` for newer ones of its major.
    """
    match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch)
    if match is None:
        return False
    theirs = (int(match[2]), int(match[3]))
    if match[4] == "a":
        return mine == theirs
    if match[1] == "compute" and not match[4]:
        return mine >= theirs
    return mine[0] == theirs[0] and mine >= theirs
