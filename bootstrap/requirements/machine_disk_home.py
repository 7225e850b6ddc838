"""``machine.disk-home``: the home folder has room for what the profile puts there, such as Miniconda."""

from __future__ import annotations

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, skipped
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from bootstrap.requirements.machine_disk import room, still_needed
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """Compare what is free in the home folder with what the profile writes there."""
    if profile.machine.home_gb <= 0:
        return skipped(_("This profile puts nothing into the home folder."), f"home_gb = {profile.machine.home_gb:g}")
    text = _("Make room in the home folder: caches of pip, conda and Hugging Face are the usual place to look.")
    commands = ("du -xsh ~/.cache ~/.conda/pkgs ~/miniconda3/pkgs",)
    return room(facts, "home", still_needed(profile.machine.home_gb, facts), Remedy(text, commands))


REQUIREMENT = Requirement(
    "machine.disk-home",
    N_("Room in the home folder"),
    N_("Miniconda and the caches lie there, and homes on clusters are often small."),
    "0-0",
    check,
    reads=("machine", "env"),
)
