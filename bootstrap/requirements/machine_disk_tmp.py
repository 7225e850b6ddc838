"""``machine.disk-tmp``: the temporary folder has room for downloads and builds."""

from __future__ import annotations

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from bootstrap.requirements.machine_disk import GB, room
from bootstrap.requirements.machine_tmp_exec import no_folder, use_another
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """Compare what is free in ``TMPDIR`` with what compilers and pip put there."""
    lost = no_folder(facts)
    if lost is not None:
        return lost
    text = _("Make room there, or use a temporary folder elsewhere.")
    return room(facts, "tmp", profile.machine.tmp_gb * GB, Remedy(text, use_another(facts), needs=("shell",)))


REQUIREMENT = Requirement(
    "machine.disk-tmp",
    N_("Room for temporary files"),
    N_("Compilers and pip write gigabytes there; when it is full, their message seldom says so."),
    "0-0",
    check,
)
