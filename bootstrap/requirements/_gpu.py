"""What the checks of the GPU share: comparing versions, and planning for a GPU that cannot be seen."""

from __future__ import annotations

import re

from bootstrap.facts import Facts, Gpu
from bootstrap.findings import Finding, skipped
from bootstrap.profiles import Profile
from pipeline.i18n import _


def numbers(version: str) -> tuple[int, ...]:
    """A version as numbers to compare: ``535.129.03`` → ``(535, 129, 3)``."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def login_node(facts: Facts) -> bool:
    """Whether this looks like a node from which jobs are started: a scheduler is here, a driver is not."""
    return bool(facts.machine.scheduler) and not facts.gpu.source


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
