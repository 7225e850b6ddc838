"""``machine.memory``: enough memory, and not more compilers at a time than it holds (flash-attn, apex, DeepSpeed)."""

from __future__ import annotations

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, unknown, warn
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from bootstrap.requirements._compile import fit, to_build
from bootstrap.requirements.machine_disk import GB, gigabytes
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """Compare memory with the profile, and the compilers that a build will start with what is available."""
    needs, machine = profile.machine, facts.machine
    if machine.memory_total is None:
        return unknown(_("The memory could not be read."), (machine.errors.get("memory", ""),))
    total = gigabytes(machine.memory_total)
    looked = _("/proc/meminfo and control groups: {total} in all, {available} available; needed: {needed}").format(
        total=total,
        available=gigabytes(machine.memory_available),
        needed=gigabytes(needs.memory_gb * GB),
    )
    if machine.memory_total < needs.memory_gb * GB:
        summary = _("{total} of memory; this profile needs {needed}.")
        text = _("Ask for more memory: of the scheduler (Slurm: `--mem`), the container, or on a larger machine.")
        return fail(summary.format(total=total, needed=gigabytes(needs.memory_gb * GB)), (looked,), Remedy(text))
    left = to_build(profile, facts)
    if not left:
        return ok(_("{total} of memory").format(total=total), looked)
    room = fit(profile, facts)
    if room is None or machine.cores is None:
        return unknown(_("How many compilers fit into memory could not be told."), (looked,))
    given = machine.variables.get("MAX_JOBS", "")
    set_ = given.isdigit() and int(given) > 0  # anything else is passed over by torch
    jobs = int(given) if set_ else machine.cores
    counted = _("to build: {names}; {jobs} compilers ({source}) of up to {each} each; {fit} fit").format(
        names=", ".join(left),
        jobs=jobs,
        source=f"MAX_JOBS={given}" if set_ else _("as many as cores, since MAX_JOBS is not set"),
        each=gigabytes(needs.memory_gb_per_job * GB),
        fit=room,
    )
    if jobs > room:
        summary = _("{jobs} compilers at a time need more than the {available} of memory that is available.")
        text = _("Set this before the build; it takes longer, but does not run out of memory.")
        return warn(
            summary.format(jobs=jobs, available=gigabytes(machine.memory_available)),
            (looked, counted),
            Remedy(text, (f"export MAX_JOBS={room}",), needs=("shell",)),
        )
    return ok(_("{total} of memory").format(total=total), looked, counted)


REQUIREMENT = Requirement(
    "machine.memory",
    N_("Memory"),
    N_("A build or a training that runs out of memory is killed, often without a word, and leaves half of its files."),
    "0-0",
    check,
    reads=("machine", "env"),
)
