"""``machine.processes``: the user, and the control group, may have as many processes and threads as are needed."""

from __future__ import annotations

from bootstrap.facts import Facts
from bootstrap.findings import OK, Finding, Remedy, fail
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from bootstrap.requirements.machine_open_files import limit
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """Compare the soft limit and the control group's with the profile."""
    need = profile.machine.processes
    finding = limit(facts, "processes", need, "-u", _("processes"))
    allowed = facts.machine.limits.get("pids", -1)
    if finding.status == OK and 0 <= allowed < need:
        looked = _("pids.max of the control group: {allowed}; needed: {needed}").format(allowed=allowed, needed=need)
        text = _("Start the container or job with a higher limit; Docker: `--pids-limit={needed}`.").format(needed=need)
        summary = _("The control group allows {allowed} processes; {needed} are needed.")
        return fail(
            summary.format(allowed=allowed, needed=need), (*finding.evidence, looked), Remedy(text, needs=("restart",))
        )
    return finding


REQUIREMENT = Requirement(
    "machine.processes",
    N_("Limit of processes"),
    N_("Threads count too, and libraries start one for each core in each rank; beyond the limit nothing starts."),
    "0-0",
    check,
)
