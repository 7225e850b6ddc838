"""``machine.scheduler``: no variables of another scheduler than the one that is here."""

from __future__ import annotations

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, ok, warn
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from pipeline.i18n import N_, _

#: What each scheduler sets in a job: prefixes, and names without one (qsub(1) of Grid Engine).
OWN: dict[str, tuple[str, tuple[str, ...]]] = {
    "slurm": ("SLURM_", ()),
    "pbs": ("PBS_", ()),
    "sge": ("SGE_", ("PE_HOSTFILE", "NHOSTS", "JOB_ID")),
}
#: Says where a scheduler is installed or how its commands answer, and nothing of a job: login scripts set them.
SETTINGS = frozenset(
    {
        *("SLURM_CONF", "SLURM_TIME_FORMAT", "SLURM_CLUSTERS", "PBS_CONF_FILE", "PBS_EXEC", "PBS_SERVER"),
        *("PBS_DEFAULT", "PBS_HOME", "SGE_ROOT", "SGE_CELL", "SGE_CLUSTER_NAME", "SGE_QMASTER_PORT", "SGE_EXECD_PORT"),
    }
)
#: Everyday names: without any scheduler they may be the user's own.
EVERYDAY = frozenset({"NHOSTS", "JOB_ID"})
TITLES = {"slurm": "Slurm", "sge": "Grid Engine", "pbs": "PBS"}


def check(_profile: Profile, facts: Facts) -> Finding:
    """Look for variables that only another scheduler sets."""
    here = facts.machine.scheduler
    strange: list[str] = []
    for scheduler, (prefix, names) in OWN.items():
        if scheduler != here:
            strange += [
                name
                for name in facts.machine.variables
                if (name.startswith(prefix) or name in names)
                and name not in SETTINGS
                and (here or name not in EVERYDAY)
            ]
    title = TITLES.get(here, _("no scheduler"))
    looked = _("scheduler here: {scheduler}; looked for variables of {others}").format(
        scheduler=title, others=", ".join(name for key, name in TITLES.items() if key != here)
    )
    if not strange:
        return ok(title, looked)
    seen = [looked, *(f"{name}={facts.machine.variables[name]}" for name in strange)]
    summary = _("{scheduler} is here, yet variables of another scheduler are set: {names}.")
    if not here:
        summary = _("There is no scheduler here, yet variables of one are set: {names}.")
    text = _("Unset what was left over or copied from another cluster.")
    return warn(
        summary.format(scheduler=title, names=", ".join(strange)),
        seen,
        Remedy(text, (f"unset {' '.join(strange)}",), needs=("shell",)),
    )


REQUIREMENT = Requirement(
    "machine.scheduler",
    N_("Variables of the scheduler"),
    N_("Launchers read hosts and ranks from them; those of another scheduler start too few or the wrong processes."),
    "0-0",
    check,
)
