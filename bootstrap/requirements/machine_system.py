"""``machine.system``: Linux, on a processor and a C library that the profile's packages are made for."""

from __future__ import annotations

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """Compare system, processor and glibc with what the profile's wheels need."""
    needs, machine = profile.machine, facts.machine
    wanted = _("needed: Linux on {machines} with glibc {glibc} or newer").format(
        machines=", ".join(needs.machines), glibc=needs.glibc
    )
    found = _("found: {system} on {machine}, {libc}").format(
        system=machine.system or "?", machine=machine.machine or "?", libc=machine.libc or _("C library not known")
    )
    seen = (wanted, found)
    if not machine.system or not machine.machine:
        return unknown(_("The system could not be told."), seen)
    if machine.system != "Linux":
        return fail(_("This is {system}, not Linux.").format(system=machine.system), seen, _other_machine())
    if machine.machine not in needs.machines:
        summary = _("The processor is {machine}; this profile has no packages for it.")
        return fail(summary.format(machine=machine.machine), seen, _other_machine())
    if not machine.libc:
        return unknown(_("The version of the C library could not be read."), seen)
    name, _space, version = machine.libc.partition(" ")
    if name != "glibc":
        summary = _("The C library is {libc}; the packages of this profile need glibc.")
        return fail(summary.format(libc=machine.libc), seen, _other_machine())
    try:
        too_old = _numbers(version) < _numbers(needs.glibc)
    except ValueError:
        return unknown(_("The version of the C library could not be read."), seen)
    if too_old:
        summary = _("glibc {version} is older than {needed}.").format(version=version, needed=needs.glibc)
        return fail(summary, seen, _other_machine())
    return ok(_("Linux, {machine}, {libc}").format(machine=machine.machine, libc=machine.libc), *seen)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _other_machine() -> Remedy:
    text = _("Use another machine, or a container whose system fits; nothing on this one can be changed to fit.")
    return Remedy(text, needs=("root",))


REQUIREMENT = Requirement(
    "machine.system",
    N_("Linux system"),
    N_("The locked packages are compiled: they do not load under another system, processor or an older C library."),
    "0-0",
    check,
)
